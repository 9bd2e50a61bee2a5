"""Batch image jobs: prompt tables in, shards of pictures out.

`tables` reads a table row by row, `storage` writes whole files to a folder or an object store, `sinks` are the output
formats, `shard` draws and commits one shard, `workers` run many, `job_folder` decides what is left to do, `perform` joins
them, and `command` is the command line.
"""
