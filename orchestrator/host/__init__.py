"""What the machine offers: whole files, signals, progress on the terminal, threads, shared disks, the state folder."""
