"""API prompts the server tests queue, built from a few calls."""

from __future__ import annotations

SAMPLER = {
    "seed": 1,
    "cfg": -1.0,
    "temperature": -1.0,
    "top_k": 1,
    "top_p": -1.0,
    "start_at_scale": 0,
    "end_at_scale": -1,
}
PRUNING = {
    "preset": "Custom",
    **{f"ratio_{n}": 0.0 for n in range(1, 7)},
    "structure_weight": 0.5,
    "fill": "nearest",
    "guidance_late": "both",
    "guidance_late_scales": 0,
    "first_layer": -1,
    "scope": "scale",
    "normalise": "minmax",
    "iterations": 5,
    "kernel": 3,
    "selector": "stepvar",
    "coverage": 0,
    "protect_mode": "add",
    "auto_goal": "off",
    "auto_value": 0.9,
}


class Graph:
    """An API prompt in the making: add() returns the node's id, and [id, slot] links to its outputs."""

    def __init__(self):
        self.nodes = {}

    def add(self, class_type: str, **inputs) -> str:
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": class_type, "inputs": inputs}
        return node_id

    def save(self, image, prefix: str = "test") -> dict:
        self.add("SaveImage", images=image, filename_prefix=prefix)
        return self.nodes


class Sampling(Graph):
    """The part that all families share. A subclass sets model, vae, label (the positive conditioning) and latent."""

    def prune(self, **options) -> list:
        return [self.add("StepVARPruning", model=self.model, **(PRUNING | options)), 0]

    def sample(self, model=None, latent=None, **options) -> list:
        inputs = (
            {"model": model or self.model, "positive": self.label, "latent": latent or self.latent} | SAMPLER | options
        )
        return [self.add("VARSampler", **inputs), 0]

    def decode(self, samples, tiled: bool = False) -> list:
        if tiled:
            return [
                self.add(
                    "VAEDecodeTiled",
                    samples=samples,
                    vae=self.vae,
                    tile_size=512,
                    overlap=64,
                    temporal_size=64,
                    temporal_overlap=8,
                ),
                0,
            ]
        return [self.add("VAEDecode", samples=samples, vae=self.vae), 0]

    def picture(self, samples=None) -> dict:
        return self.save(self.decode(samples or self.sample()))


class Pipeline(Sampling):
    """Loader, label and empty latent of one class-conditional model; sample() and picture() complete it."""

    def __init__(self, model: str, vae: str, label: str = "1; 2", batch: int = 2):
        super().__init__()
        self.loader = self.add("VARModelLoader", model_name=model, vae_name=vae, weight_dtype="auto", variant="auto")
        self.model, self.vae = [self.loader, 0], [self.loader, 1]
        self.label = [self.add("VARClassLabel", model=self.model, label=label), 0]
        self.latent = [
            self.add(
                "EmptyVARLatent", model=self.model, aspect_ratio="1:1", size="auto", seconds=5.0, batch_size=batch
            ),
            0,
        ]


class TextPipeline(Sampling):
    """Loader, text encoder, prompt and empty latent of one text-to-image model."""

    def __init__(
        self,
        model: str,
        vae: str,
        encoder: str,
        prompt: str = "a red fox in the snow",
        size: str = "0.06M",
        ratio: str = "1:1",
        batch: int = 1,
        dtype: str = "auto",
        kind: str = "auto",
    ):
        super().__init__()
        self.loader = self.add("VARModelLoader", model_name=model, vae_name=vae, weight_dtype=dtype, variant="auto")
        self.model, self.vae = [self.loader, 0], [self.loader, 1]
        self.encoder = self.add("VARTextEncoderLoader", encoder_name=encoder, type=kind, encoder_name_2="none")
        self.label = self.prompt(prompt)
        self.latent = [
            self.add("EmptyVARLatent", model=self.model, aspect_ratio=ratio, size=size, seconds=5.0, batch_size=batch),
            0,
        ]

    def prompt(self, text: str) -> list:
        return [self.add("CLIPTextEncode", clip=[self.encoder, 0], text=text), 0]
