"""Ways to search: strategies that are asked for genomes and told values."""
