"""What runs beneath everything: whole files, manifests, the machine, jobs in processes, places."""
