"""Where a job is computed: in this process, or in actors on Ray."""
