"""Ways to search: strategies that are asked for genomes and told fitness. JAX, on the CPU."""
