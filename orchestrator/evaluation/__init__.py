"""How good are these pictures and meshes? `orchestrator.evaluate` is the entry; one concept lives in each file.

`judge` scores a picture against a caption, `captions` makes the pool of captions to confuse it with, `r_precision` ranks,
`image_sets` finds or draws pictures, `mesh_views` photographs a mesh, `geometry` measures it against the true object,
`report` holds the figures, `table` and `picture` show them.
"""
