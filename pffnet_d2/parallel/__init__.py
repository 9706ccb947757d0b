"""Work in several processes: of this machine, of GPUs, and of the machines of a Dask cluster."""
