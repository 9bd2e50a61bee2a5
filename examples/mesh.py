"""A sentence becomes a mesh: first as the command line does it, in a run folder; then in memory, step by step.

python examples/mesh.py [GROUP.KEY=VALUE ...]
"""

import sys

import dreamkiln

PROMPT = "a red mushroom with a white stem"
SETTINGS = {"preset": "draft", "runtime.kind": "inline"}

if __name__ == "__main__":
    outcome = dreamkiln.text_to_3d(PROMPT, SETTINGS, overrides=sys.argv[1:], out="mushroom")
    print(f"{outcome.did}: {outcome.folder / 'mesh.glb'}")  # said again, it has nothing to do

    prior = dreamkiln.load_prior("toybox")
    result = dreamkiln.fit(prior, PROMPT, SETTINGS, overrides=sys.argv[1:], seed=1)
    dreamkiln.write_mesh(result.mesh, "mushroom.ply", prompt=PROMPT)
    assert result.field is not None
    coarse = dreamkiln.extract_mesh(result.field, dreamkiln.MeshConfig(resolution=32))
    dreamkiln.write_mesh(coarse, "mushroom.stl")
