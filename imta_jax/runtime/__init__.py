"""Process-level services: files, locks, progress, the command line, caches, preemption."""
