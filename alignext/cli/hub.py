# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext hub build`: a method as a repository of code, which diffusers and transformers load."""

import argparse
from pathlib import Path
from typing import Any

from alignext.cli.arguments import file_of


# Method -> the kinds of repository it can be, the usual one first, each with the class that it is by default.
METHODS: dict[str, dict[str, str]] = {
    "rival": {"blocks": "RIVALBlocks", "pipeline": "RIVALPipeline"},
    "alignedgen": {"blocks": "AlignedGenBlocks", "pipeline": "AlignedGenPipeline"},
    "search": {"blocks": "LatentSearchBlocks", "pipeline": "StableDiffusionSearchPipeline"},
    "qalign": {"custom_generate": "QAlign"},
    "transfer-q": {"custom_generate": "TransferQ"},
    "guided": {"custom_generate": "GuidedDecoding"},
    "svdecode": {"custom_generate": "SVDecodeLogitsProcessor"},
}
_PRESETS = {"rival": "StableDiffusionXLAutoBlocks"}
_NEEDED = {"svdecode": "strength"}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext hub`."""
    parser = subparsers.add_parser(
        "hub",
        help="write a method as a Hub repository that stock diffusers or transformers loads",
        description="A folder with the code of a method, its requirements and its card, to be loaded with "
        "trust_remote_code=True: blocks for Modular Diffusers, a custom pipeline, or custom_generate. It holds no "
        "weights.",
        epilog="Example: alignext hub build alignedgen --model black-forest-labs/FLUX.1-dev --out flux-in-one-style",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="write the folder, and push it with --push")
    build.add_argument("method", choices=METHODS, help="which method")
    build.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to")
    build.add_argument(
        "--kind", choices=("blocks", "pipeline", "custom_generate"), help="of repository (default: the method's first)"
    )
    build.add_argument(
        "--class", dest="cls", metavar="NAME", help="for --kind pipeline: of alignext (default: for Stable Diffusion)"
    )
    build.add_argument(
        "--preset", metavar="NAME", help="for --kind blocks: of diffusers (default: FluxAutoBlocks; RIVAL: SDXL's)"
    )
    build.add_argument("--model", metavar="MODEL", help="base model that the card names, and blocks are loaded with")
    build.add_argument("--reward", action="append", metavar="MODEL", help="for decoding: id of a reward model")
    build.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="for decoding: a setting of the class"
    )
    build.add_argument("--push", metavar="OWNER/NAME", help="also push it there")
    build.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    parser.set_defaults(func=run, words_of={"reward_funcs": "--reward", "strength": "--set strength"})


def run(args: argparse.Namespace) -> None:
    """Write the folder, and say how it is loaded."""
    kinds = METHODS[args.method]
    kind = args.kind or next(iter(kinds))
    if kind not in kinds:
        raise ValueError(f"--kind {kind} is not there for {args.method}, which can be {' or '.join(kinds)}.")
    for option, only in (("cls", "pipeline"), ("preset", "blocks"), ("reward", "custom_generate")):
        if getattr(args, option) is not None and kind != only:
            name = {"cls": "class"}.get(option, option)
            raise ValueError(f"--{name} belongs to --kind {only}, received --kind {kind}.")
    if args.set and kind != "custom_generate":
        raise ValueError(f"--set belongs to --kind custom_generate, received --kind {kind}.")
    if args.out.is_file() or (args.out.is_dir() and any(args.out.iterdir()) and not args.overwrite):
        raise ValueError(f"--out {args.out} is a file or holds files. Name a new folder, or add --overwrite.")
    build = {"blocks": _blocks, "pipeline": _pipeline, "custom_generate": _custom_generate}[kind]
    print(build(args, args.push or str(args.out.resolve())))
    if args.push:
        from alignext.hub_code import push_folder

        push_folder(args.out, args.push, commit_message=f"{args.method} of alignext")
        print(f"pushed to {args.push}")


def _blocks(args: argparse.Namespace, repo_id: str) -> str:
    import diffusers

    import alignext
    from alignext.hub_code import write_blocks

    name = args.preset or _PRESETS.get(args.method, "FluxAutoBlocks")
    preset: Any = getattr(diffusers, name, None) if name.endswith("Blocks") else None
    if not getattr(preset, "block_classes", ()):
        raise ValueError(f"--preset {name} is no preset of diffusers, such as FluxAutoBlocks or WanBlocks.")
    if args.model:
        file_of(args.model, "modular_model_index.json", "model_index.json", name="--model", what="base model")
    write_blocks(getattr(alignext, METHODS[args.method]["blocks"])(preset()), args.out, repo_id, args.model)
    return f'ModularPipelineBlocks.from_pretrained("{repo_id}", trust_remote_code=True)'


def _pipeline(args: argparse.Namespace, repo_id: str) -> str:
    import alignext
    from alignext.hub_code import pipeline_card, pipeline_files, write_files

    usual = METHODS[args.method]["pipeline"]
    name = args.cls or usual
    cls: Any = getattr(alignext, name) if name in alignext.__all__ and name.endswith("Pipeline") else None
    if getattr(cls, "_name", None) != getattr(alignext, usual)._name:
        raise ValueError(f"--class {name} is no pipeline of {args.method}, such as {usual}.")
    write_files(args.out, pipeline_files(cls), pipeline_card(cls, repo_id, args.model))
    base = args.model or "BASE_MODEL"
    return f'DiffusionPipeline.from_pretrained("{base}", custom_pipeline="{repo_id}", trust_remote_code=True)'


def _custom_generate(args: argparse.Namespace, repo_id: str) -> str:
    import inspect

    import yaml

    import alignext
    from alignext.decoding.hub import custom_generate_files
    from alignext.hub_code import decoding_card, write_files

    name = METHODS[args.method]["custom_generate"]
    cls: Any = getattr(alignext, name)
    settings: dict[str, Any] = {"reward_funcs": args.reward} if args.reward else {}
    known = set(inspect.signature(cls).parameters) - {"model", "processing_class", "prompt_attention_mask"}
    for text in args.set:
        key, equals, value = text.partition("=")
        if key not in known or not equals:
            raise ValueError(f"--set {text} must be NAME=VALUE with one of {', '.join(sorted(known))}.")
        settings[key] = yaml.safe_load(value)
    needed = _NEEDED.get(args.method, "reward_funcs")
    if needed not in settings:
        option = f"--set {needed}=VALUE" if needed == "strength" else "--reward MODEL"
        raise ValueError(f"{args.method} needs {option}, received none.")
    files = custom_generate_files({"SVDecodeLogitsProcessor": "SVDecode"}.get(name, name), settings)
    write_files(args.out, files, decoding_card(cls, repo_id, args.model))
    return f'model.generate(**inputs, custom_generate="{repo_id}", trust_remote_code=True)'
