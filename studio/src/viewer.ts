/** A mesh on a turntable: orbit by pointer, touch or arrow keys. */

import {
  ACESFilmicToneMapping,
  Box3,
  Color,
  Mesh,
  MeshNormalMaterial,
  MeshStandardMaterial,
  PerspectiveCamera,
  PMREMGenerator,
  Scene,
  Vector3,
  WebGLRenderer,
  type Material,
  type Object3D,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { RoomEnvironment } from "three/addons/environments/RoomEnvironment.js";
import { MeshoptDecoder } from "three/addons/libs/meshopt_decoder.module.js";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

export type Look = "material" | "normals" | "wireframe" | "clay";

export interface Facts {
  faces: number;
  vertices: number;
  size: [number, number, number];
}

export class Viewer {
  private readonly renderer: WebGLRenderer;
  private readonly scene = new Scene();
  private readonly camera = new PerspectiveCamera(35, 1, 0.01, 100);
  readonly controls: OrbitControls;
  private readonly originals = new Map<Mesh, Material | Material[]>();
  private readonly observer: ResizeObserver;
  private frame = 0;
  private isDirty = true;
  turns = false;
  followers: Viewer[] = [];

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
    this.renderer.toneMapping = ACESFilmicToneMapping;
    this.renderer.toneMappingExposure = 1.05;
    const generator = new PMREMGenerator(this.renderer);
    this.scene.environment = generator.fromScene(new RoomEnvironment(), 0.04).texture;
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.enableDamping = true;
    this.controls.addEventListener("change", () => this.moved());
    this.home();
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(canvas.parentElement!);
    canvas.addEventListener("keydown", this.onKey);
    this.resize();
    this.loop();
  }

  async load(url: string): Promise<Facts> {
    const loader = new GLTFLoader();
    loader.setMeshoptDecoder(MeshoptDecoder);
    const response = await fetch(url, { credentials: "same-origin" });
    if (!response.ok) throw new Error("The mesh could not be fetched.");
    const found = await loader.parseAsync(await response.arrayBuffer(), "");
    const box = new Box3().setFromObject(found.scene);
    const size = box.getSize(new Vector3());
    const centre = box.getCenter(new Vector3());
    const scale = 1 / Math.max(size.x, size.y, size.z, 1e-9);
    found.scene.position.copy(centre).multiplyScalar(-scale);
    found.scene.scale.setScalar(scale);
    let faces = 0;
    let vertices = 0;
    found.scene.traverse((one: Object3D) => {
      if (!(one instanceof Mesh)) return;
      this.originals.set(one, one.material);
      vertices += one.geometry.getAttribute("position").count;
      faces += (one.geometry.index?.count ?? one.geometry.getAttribute("position").count) / 3;
    });
    this.scene.add(found.scene);
    this.isDirty = true;
    return { faces, vertices, size: [size.x, size.y, size.z] };
  }

  show(look: Look): void {
    for (const [mesh, original] of this.originals) {
      const first = (Array.isArray(original) ? original[0] : original) as MeshStandardMaterial;
      if (look === "material") mesh.material = original;
      if (look === "normals") mesh.material = new MeshNormalMaterial();
      if (look === "clay") mesh.material = new MeshStandardMaterial({ color: new Color("#b9a999"), roughness: 0.75, normalMap: first.normalMap });
      if (look === "wireframe") mesh.material = new MeshStandardMaterial({ color: new Color("#e8632b"), wireframe: true, roughness: 1 });
    }
    this.isDirty = true;
  }

  home(): void {
    this.camera.position.set(1.35, 0.75, 1.75);
    this.controls.target.set(0, 0, 0);
    this.controls.update();
    this.isDirty = true;
  }

  /** The direction of the camera, for tests and for viewers that turn together. */
  get azimuth(): number {
    return this.controls.getAzimuthalAngle();
  }

  private moved(): void {
    this.isDirty = true;
    this.canvas.dataset.azimuth = this.azimuth.toFixed(3);
    for (const other of this.followers) {
      other.camera.position.copy(this.camera.position);
      other.controls.target.copy(this.controls.target);
      other.camera.lookAt(other.controls.target);
      other.isDirty = true;
    }
  }

  private turn(right: number, up: number): void {
    const offset = this.camera.position.clone().sub(this.controls.target);
    const radius = offset.length();
    const azimuth = Math.atan2(offset.x, offset.z) + right;
    const polar = Math.min(Math.PI - 0.05, Math.max(0.05, Math.acos(offset.y / radius) - up));
    offset.set(Math.sin(polar) * Math.sin(azimuth), Math.cos(polar), Math.sin(polar) * Math.cos(azimuth)).multiplyScalar(radius);
    this.camera.position.copy(this.controls.target).add(offset);
    this.controls.update();
    this.moved();
  }

  private readonly onKey = (event: KeyboardEvent) => {
    const steps: Record<string, [number, number]> = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.12], ArrowDown: [0, -0.12] };
    const step = steps[event.key];
    if (step) this.turn(...step);
    else if (event.key === "+" || event.key === "=") this.zoom(0.9);
    else if (event.key === "-") this.zoom(1.1);
    else if (event.key === "0") this.home();
    else return;
    event.preventDefault();
  };

  private zoom(factor: number): void {
    this.camera.position.sub(this.controls.target).multiplyScalar(factor).add(this.controls.target);
    this.controls.update();
    this.moved();
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement!;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.isDirty = true;
  }

  private readonly loop = () => {
    this.frame = requestAnimationFrame(this.loop);
    if (this.turns) this.turn(0.012, 0);
    this.controls.update();
    if (!this.isDirty) return;
    this.isDirty = false;
    this.renderer.render(this.scene, this.camera);
  };

  end(): void {
    cancelAnimationFrame(this.frame);
    this.observer.disconnect();
    this.canvas.removeEventListener("keydown", this.onKey);
    this.controls.dispose();
    this.renderer.dispose();
    this.renderer.forceContextLoss();
  }
}
