"""What is on disk: folders, the Hub, the models of a plan. No tensor library."""
