"""What a plan is: frozen data, its normal form, and the only walk over it."""
