# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the commands that make pictures share: options, loading, and results that remember how they were made."""

import argparse
import functools
import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignext import __version__
from alignext.cli.arguments import at_least_one, between, device_of, file_of, nearest, number, stock_class


_KEY = "alignext"  # of the text chunk in a PNG
_OTHERS = ("help", "out", "overwrite", "debug")  # not how a picture was made
# Arguments of pipelines by options of another name.
WORDS = {
    "num_inference_steps": "--steps",
    "num_images_per_prompt": "--images",
    "mask_image": "--mask",
    "controlnet_conditioning_image": "--control-image",
    "num_beams": "--beams",
    "num_candidates": "--candidates",
    "lookahead_steps": "--lookahead",
}


def add_model_options(parser: argparse.ArgumentParser, *, model: str, dtype: str) -> None:
    """The options of the checkpoint, its LoRAs, and where it runs."""
    group = parser.add_argument_group("model and memory")
    group.add_argument("--model", type=_place, help=f"{model}: folder, Hub id or single file (default: embedded)")
    group.add_argument(
        "--model-config", type=_place, help="of a single file: folder or Hub id of its kind (default: found out)"
    )
    group.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="a LoRA for that checkpoint, folder, file or Hub id, such as style.safetensors:0.8; may be given several "
        "times (default scale: 1)",
    )
    group.add_argument("--device", help="for example cuda (default: cuda where there is one, else cpu)")
    group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help=f"default: {dtype} on cuda")
    group.add_argument(
        "--offload", choices=("model", "sequential"), help="keep the weights in main memory until they are needed"
    )


def add_output_options(parser: argparse.ArgumentParser, *, what: str) -> None:
    """The options of what is drawn and where it goes."""
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {what}; a second run gets one of its own")
    parser.add_argument(
        "--size", type=_size, metavar="WIDTHxHEIGHT", help="pixels (default: as the model was trained)"
    )
    parser.add_argument("--negative-prompt", help="what not to draw")
    parser.add_argument("--guidance-scale", type=number, help="how closely to follow the prompt (default: by model)")
    parser.add_argument("--overwrite", action="store_true", help="write into --out, whatever is in it")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="take all options from settings.json or a picture"
    )


def _place(text: str) -> str:
    """The whole path of what lies here, so that `--from` finds it from elsewhere; else a Hub id, as it is."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def _lora(text: str) -> tuple[str, float]:
    path, colon, scale = text.rpartition(":")
    if not colon or (len(path) == 1 and scale.startswith("\\")):  # a drive of Windows
        return text, 1.0
    try:
        return path, between(-10, 10)(scale)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not PATH or PATH:SCALE, such as style.safetensors:0.8"
        ) from None


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (at_least_one(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 768x512") from None
    return width, height


def size_of(args: argparse.Namespace) -> dict[str, int]:
    """`width` and `height`, as far as they were given."""
    return dict(zip(("width", "height"), args.size or (), strict=False))


def load(args: argparse.Namespace, default: str, classes: dict[str, str] | None = None, **parts: Any) -> Any:
    """
    The pipeline of the options, with its LoRAs, on its device.

    Args:
        args (`argparse.Namespace`): The options of [`add_model_options`].
        default (`str`): The embedded model where none is named.
        classes (`dict[str, str]`, *optional*): Stock class to public class; any stock class by default.
        **parts: Further arguments of `from_pretrained`.

    Raises:
        ValueError: The checkpoint is of another class.
        OSError: There is no such checkpoint, or no such LoRA.
    """
    import diffusers

    import alignext
    from alignext import mini
    from alignext.diffusion.single_files import kind_of

    model, device = args.model or str(mini.path(default)), device_of(args.device)
    config = args.model_config or kind_of(model, name="--model") if Path(model).is_file() else None
    stock = stock_class(config or model, name="--model-config" if config else "--model")
    if classes is not None and stock not in classes:
        raise ValueError(f"--model {model} is a {stock}; this command takes {', '.join(classes)}.")
    loader = getattr(alignext, classes[stock]) if classes is not None else getattr(diffusers, stock)
    read = functools.partial(loader.from_single_file, config=config) if config else loader.from_pretrained
    pipe = read(model, dtype=dtype_of(args, "bfloat16" if default == "flux" else "float16"), **parts)
    add_loras(pipe, args.lora)
    if args.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif args.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def dtype_of(args: argparse.Namespace, half: str = "float16") -> Any:
    """The dtype of `--dtype`, or `half` on cuda, else float32."""
    import torch

    return getattr(torch, args.dtype or (half if device_of(args.device).startswith("cuda") else "float32"))


def add_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    """
    Load LoRAs into a pipeline, each with its scale.

    Raises:
        ValueError: The pipeline takes none.
        OSError: There is no such LoRA.
    """
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"--lora: {type(pipe).__name__} takes no LoRA.")
    names = [f"lora_{k}" for k in range(len(loras))]
    for name, (path, _) in zip(names, loras, strict=True):
        file = Path(path)
        if not file.is_file():
            file = file_of(path, "pytorch_lora_weights.safetensors", name="--lora", what="LoRA of diffusers")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # PEFT, of the second one
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(names, [scale for _, scale in loras])


def set_scheduler(pipe: Any, name: str | None) -> None:
    """
    Give the pipeline another scheduler, built from the settings of its own.

    Raises:
        ValueError: No scheduler of that name goes with the pipeline.
    """
    if name is None:
        return
    from alignext.diffusion.schedulers import rebuild_scheduler

    def plain(text: str) -> str:
        """`euler` of `EulerDiscreteScheduler`, `euler-discrete` and `Euler`."""
        return text.lower().replace("scheduler", "").replace("discrete", "").replace("-", "").replace("_", "")

    short = {plain(cls.__name__): cls for cls in pipe.scheduler.compatibles}
    wanted = plain(name)
    if wanted not in short:
        raise ValueError(
            f"--scheduler {name} does not go with {type(pipe).__name__}{nearest(wanted, short) or '.'} It takes "
            f"{', '.join(sorted(short))}."
        )
    pipe.scheduler = rebuild_scheduler(pipe.scheduler, short[wanted])


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """How the pictures are made: the words of the command that makes them again, and the version."""
    words = [args.command]
    for action in args.parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in (*_OTHERS, "source") or value == action.default:
            continue
        texts = [_word(action, v) for v in (value if isinstance(value, list) else [value])]
        if not action.option_strings:
            words += texts
        elif action.nargs == 0:
            words.append(action.option_strings[-1])
        elif action.nargs is None:
            for text in texts:  # of its own, what begins with a dash would be read as an option
                option = action.option_strings[-1]
                words += [f"{option}={text}"] if text.startswith("-") else [option, text]
        else:
            words += [action.option_strings[-1], *texts]
    return {"alignext": __version__, "seed": args.seed, "words": words}


def _word(action: argparse.Action, value: Any) -> str:
    """An argument as it was written, with files by their whole path."""
    if action.type is _lora:
        return f"{_place(value[0])}:{value[1]}"
    if isinstance(value, tuple):  # a size, or numbers such as a range of layers
        return ("x" if action.type is _size else ":").join(map(str, value))
    return str(value.resolve()) if isinstance(value, Path) else str(value)


def remembered(words: list[str]) -> list[str]:
    """
    The words of a command, those of `--from FILE` before its own.

    Raises:
        OSError: The file does not say how it was made.
    """
    place = next((k for k, word in enumerate(words) if word.partition("=")[0] == "--from"), len(words))
    option, *rest = words[place:] or [""]
    _, equals, file = option.partition("=")
    if not (equals or rest):
        return words
    path = Path(file if equals else rest.pop(0))
    try:
        if path.suffix.lower() == ".png":
            from PIL import Image

            with Image.open(path) as picture:
                found = json.loads(picture.info[_KEY])
        else:
            found = json.loads(path.read_text(encoding="utf-8"))
        command, *first = found["words"]
    except FileNotFoundError as error:
        raise OSError(f"--from {path} is no file.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"--from {path} does not say how it was made: pass settings.json or a PNG of alignext."
        ) from error
    if words[:1] != [command]:
        raise OSError(f"--from {path} was made by `alignext {command}`. Write: alignext {command} --from {path} ...")
    return [command, *first, *words[1:place], *rest]


def check_negative_prompt(pipe: Any, call: dict[str, Any]) -> None:
    """
    Find out before the work whether a negative prompt counts.

    Args:
        pipe (`DiffusionPipeline`): What is called.
        call (`dict`): The arguments that it is given.

    Raises:
        ValueError: The pipeline would pass over it, since guidance is off.
    """
    # Models that were distilled for guidance have a scale of their own for that of two calls.
    taken = inspect.signature(pipe.__call__).parameters
    name = "true_cfg_scale" if "true_cfg_scale" in taken else "guidance_scale"
    scale = call.get(name, taken[name].default if name in taken else None)
    if call.get("negative_prompt") and isinstance(scale, int | float) and scale <= 1:
        raise ValueError(
            f"`negative_prompt` does nothing with `{name}={scale:g}`. Set `{name}` above 1, such as 4, or leave "
            "`negative_prompt` out."
        )


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def finish(args: argparse.Namespace, sections: Sequence[Any], made: str, *, title: str) -> None:
    """Write `settings.json` and the page of the sections into `--out`, and say what was `made` and where it is."""
    from alignext.demos.gallery import write_gallery
    from alignext.files import write_json

    write_json(args.out / "settings.json", settings_of(args))
    page = write_gallery(args.out, sections, title=title)
    print(f"{made}. Open {page.resolve()}")
