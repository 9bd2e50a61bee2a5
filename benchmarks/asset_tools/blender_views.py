"""Runs inside Blender, headless: opens mesh files and draws each from some cameras, unlit or lit.

blender -b --python blender_views.py -- JOB.json; the job has size, cameras (camera-to-world, +Y up), fov_degrees, lit, and
files: [mesh, [picture, …]] pairs. It prints one JSON line a mesh with what Blender made of it.
"""

import json
import math
import sys

import bpy
import numpy
from mathutils import Matrix

numpy.bool = bool  # Debian's glTF importer is older than its numpy
Z_UP = Matrix(((1, 0, 0, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, 0, 0, 1)))


def load(path):
    """The one mesh of a file, as a user's import makes it."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    kind = path.rsplit(".", 1)[1]
    if kind in ("glb", "gltf"):
        bpy.ops.import_scene.gltf(filepath=path)
    elif kind == "obj":
        bpy.ops.wm.obj_import(filepath=path)
    elif kind == "ply":
        bpy.ops.import_mesh.ply(filepath=path)
    elif kind == "stl":
        bpy.ops.import_mesh.stl(filepath=path)
    [body] = [item for item in bpy.context.scene.objects if item.type == "MESH"]
    return body


def unlit(body):
    """The surface's colour as light of its own: the picture that its material names, else its colour attribute."""
    pictures = [
        node.image
        for material in body.data.materials
        if material and material.use_nodes
        for node in material.node_tree.nodes
        if node.type == "TEX_IMAGE" and node.image.colorspace_settings.name == "sRGB"
    ]
    material = bpy.data.materials.new("unlit")
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    output, light = tree.nodes.new("ShaderNodeOutputMaterial"), tree.nodes.new("ShaderNodeEmission")
    if pictures:
        source = tree.nodes.new("ShaderNodeTexImage")
        source.image, source.extension = pictures[0], "EXTEND"
    else:
        source = tree.nodes.new("ShaderNodeVertexColor")
        source.layer_name = body.data.color_attributes[0].name if body.data.color_attributes else ""
    tree.links.new(source.outputs["Color"], light.inputs["Color"])
    tree.links.new(light.outputs["Emission"], output.inputs["Surface"])
    body.data.materials.clear()
    body.data.materials.append(material)


def studio(job):
    """White surroundings and a camera; with lit also a sun."""
    scene = bpy.context.scene
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 16, False
    scene.cycles.max_bounces = 0 if not job["lit"] else 3
    scene.render.resolution_x = scene.render.resolution_y = job["size"]
    scene.render.pixel_aspect_x = scene.render.pixel_aspect_y = 1
    scene.view_settings.view_transform = "Standard"
    scene.cycles.pixel_filter_type = "BOX"
    world = bpy.data.worlds.new("white")
    scene.world, world.use_nodes = world, True
    world.node_tree.nodes["Background"].inputs[0].default_value = (1, 1, 1, 1)
    if job["lit"]:
        world.node_tree.nodes["Background"].inputs[1].default_value = 0.45
        sun = bpy.data.objects.new("sun", bpy.data.lights.new("sun", "SUN"))
        sun.data.energy, sun.rotation_euler = 2.5, (math.radians(45), 0, math.radians(25))
        scene.collection.objects.link(sun)
    lens = bpy.data.cameras.new("camera")
    lens.angle = math.radians(job["fov_degrees"])
    camera = bpy.data.objects.new("camera", lens)
    scene.collection.objects.link(camera)
    scene.camera = camera
    return camera


def main():
    with open(sys.argv[sys.argv.index("--") + 1]) as file:
        job = json.load(file)
    for path, pictures in job["files"]:
        body = load(path)
        materials = [material.name for material in body.data.materials if material]
        if not job["lit"]:
            unlit(body)
        camera = studio(job)
        for pose, picture in zip(job["cameras"], pictures, strict=True):
            camera.matrix_world = Z_UP @ Matrix(pose)
            bpy.context.scene.render.filepath = picture
            bpy.ops.render.render(write_still=True)
        size = [round(side, 4) for side in body.dimensions]
        print(json.dumps({"mesh": path, "faces": len(body.data.polygons), "size": size, "materials": materials}), flush=True)


main()
