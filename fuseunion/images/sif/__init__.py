"""The Singularity Image Format (SIF): a file of partitions with a table of descriptors, as Apptainer writes it."""
