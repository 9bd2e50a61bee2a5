"""How good are these pictures and meshes? `orchestrator.lab.evaluation.evaluate` is the entry; one concept lives in each file.

`images` and `meshes` score one set each. For that `judge` compares a picture with a caption, `captions` makes the pool of
captions to confuse it with, `r_precision` ranks; `image_sets` finds or draws pictures, `mesh_sets` reads meshes back,
`mesh_views` photographs them, `geometry` measures them against the true object. `report` holds the figures, `table` and
`picture` show them.
"""
