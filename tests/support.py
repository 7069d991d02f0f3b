# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What works with what, and the test that says so. `python tests/support.py` writes the tables of `docs/support.md`.

A cell that is not here is untested.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


PAGE = Path(__file__).parents[1] / "docs" / "support.md"


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the tests it rests on."""

    word: str
    tests: tuple[str, ...]


def tested(*tests: str, word: str = "tested") -> Cell:
    """A test holds the result against one without the feature, or another that is known."""
    return Cell(word, tests)


def runs(*tests: str) -> Cell:
    """A test runs it, and holds the result against nothing."""
    return Cell("runs", tests)


def refused(why: str, *tests: str) -> Cell:
    """A test holds the error."""
    return Cell(f"refused: {why}", tests)


@dataclass(frozen=True)
class Row:
    """One method on one base model."""

    method: str
    base: str
    cells: dict[str, Cell]


# ------------------------------------------------------------------------------------------------- without training

WITHOUT = ("works", "LoRA", "half precision", "CPU offload", "torch.compile", "quantized", "2 processes", "CUDA")


_COMPILED = ("model", "in place", "blocks")
_VARIANTS = ("alignedgen-kontext", "alignedgen-flux2", "alignedgen-flux2-klein", "alignedgen-qwen")


def contract(row: str) -> dict[str, Cell]:
    """What the contract suite of the pipelines holds for its row, or for a variant."""
    file = f"tests/pipelines/test_contract{'_of_variants' * (row in _VARIANTS)}.py"
    compiled = (f"{file}::test_compiled_pipeline_gives_the_same_result[{way}-{row}]" for way in _COMPILED)
    cells = {
        "works": tested(f"{file}::test_active_setting_does_something[{row}]"),
        "LoRA": tested(f"{file}::test_lora_is_used[{row}]"),
        "CPU offload": tested(f"{file}::test_offloaded_pipeline_gives_the_same_result[active-{row}]"),
        "torch.compile": tested(*compiled, word="tested without code generation"),
    }
    if row not in _VARIANTS:
        half = (f"{file}::test_half_precision_runs_and_stays[dtype{k}-active-{row}]" for k in (0, 1))
        cells["half precision"] = runs(*half)
    return cells


def search(name: str) -> dict[str, Cell]:
    """What the tests of the search hold for a pipeline that has no row in the contract suite."""
    cells = {
        "works": tested(f"{_SEARCH}::test_runs_end_to_end_and_returns_what_it_scored[{name}]"),
        "CPU offload": tested(f"{_SEARCH}::test_offloaded_pipeline_gives_the_same_result[{name}]"),
    }
    if name not in ("latte", "text-to-video-sd"):
        cells["LoRA"] = tested(f"{_SEARCH}::test_lora_is_used[{name}]")
    if name != "wan-2.2":
        test = f"{_SEARCH}::test_compiled_pipeline_gives_the_same_result[{name}]"
        cells["torch.compile"] = tested(test, word="tested without code generation")
    return cells


_ALIGN = "tests/pipelines/elbo_align/test_elbo_align.py"
_OTHERS = "test_other_pipelines_are_refused_by_name"
_UNSEEN = "tests/diffusion/test_attention.py::test_what_cannot_be_seen_is_refused"
_FADE = "tests/evaluation/test_fade_pictures.py"
_LED = "tests/rewards/test_directional.py"
_TWO = "test_flows_have_no_path_and_two_experts_no_distance"
_ALIGNED = "tests/pipelines/alignedgen"
_SEARCH = "tests/pipelines/latent_search/test_search.py"
_WAYS = "tests/steering/test_ways.py"
_DECODING = "tests/decoding/test_guided.py"
_DATA = "tests/data"
_LANGUAGE_MODELS = (
    ("Llama", "Llama"),
    ("Mistral", "Mistral"),
    ("Qwen 2", "Qwen2"),
    ("Qwen 3", "Qwen3"),
    ("Gemma 2", "Gemma2"),
    ("Gemma 3", "Gemma3Text"),
    ("Phi 3", "Phi3"),
    ("OLMo 2", "Olmo2"),
    ("GPT-2", "GPT2"),
    ("GPT-NeoX", "GPTNeoX"),
    ("Bloom", "Bloom"),
    ("Mamba", "Mamba"),
)
_SEARCHED = "tests/pipelines/latent_search/test_families.py"
_RUNS = "test_runs_end_to_end_and_returns_what_it_scored"
_REFUSES = "test_what_cannot_be_searched_is_refused_before_an_evaluation"
SEARCHED = {
    "FLUX.1 Kontext": "kontext",
    "FLUX.2": "flux2",
    "FLUX.2, editing": "flux2-editing",
    "FLUX.2 klein": "flux2-klein",
    "Qwen-Image": "qwen-image",
    "Qwen-Image-Edit": "qwen-image-edit",
    "Z-Image": "z-image",
    "Sana": "sana",
    "PixArt-Sigma": "pixart-sigma",
    "Lumina 2": "lumina2",
    "Chroma": "chroma",
    "HunyuanDiT": "hunyuan-dit",
    "CogView4": "cogview4",
}
_BLOCKS = "tests/pipelines/test_blocks.py"
_ONLY_MODULAR = "test_families_without_a_stock_class_are_searched"

PIPELINES = [
    Row("RIVAL", "Stable Diffusion 1, 2", contract("rival-sd")),
    Row("RIVAL", "Stable Diffusion XL", contract("rival-sdxl")),
    Row("RIVAL", "ControlNet, Stable Diffusion 1, 2", contract("rival-sd-controlnet")),
    Row("RIVAL", "ControlNet, XL", contract("rival-sdxl-controlnet")),
    Row("AlignedGen", "FLUX.1", contract("alignedgen")),
    Row("AlignedGen", "FLUX.1 Kontext", contract("alignedgen-kontext")),
    Row("AlignedGen", "FLUX.2", contract("alignedgen-flux2")),
    Row("AlignedGen", "FLUX.2 klein", contract("alignedgen-flux2-klein")),
    Row("AlignedGen", "Qwen-Image", contract("alignedgen-qwen")),
    *(
        Row(method, base, {"works": tested(f"{_BLOCKS}::test_the_images_are_those_of_the_class[{row}]")})
        for method, base, row in (
            ("RIVAL", "Stable Diffusion XL, modular", "rival-sdxl-guided"),
            ("AlignedGen", "FLUX.1, modular", "alignedgen-flux"),
            ("AlignedGen", "FLUX.2, modular", "alignedgen-flux2"),
            ("AlignedGen", "Qwen-Image, modular", "alignedgen-qwen"),
            ("Latent search", "FLUX.1, modular", "search-flux"),
            ("Latent search", "Stable Diffusion XL, modular", "search-sdxl"),
        )
    ),
    *(
        Row("Latent search", base, {"works": tested(f"{_BLOCKS}::{_ONLY_MODULAR}[{row}]")})
        for base, row in (("Anima, modular", "anima"), ("FLUX.3, modular", "flux3"))
    ),
    Row("AlignedGen", "FLUX.1 img2img", {"works": tested(f"{_ALIGNED}/test_pipeline.py::test_img2img")}),
    Row(
        "AlignedGen",
        "FLUX.1 ControlNet",
        {"works": tested(*(f"{_ALIGNED}/test_pipeline.py::test_controlnet[{k}]" for k in (None, 1)))},
    ),
    Row(
        "AlignedGen",
        "Stable Diffusion 3",
        {"works": refused("no rotary positions", f"{_ALIGNED}/test_bad_input.py::test_other_transformers")},
    ),
    Row(
        "Latent search",
        "Stable Diffusion 1, 2",
        contract("search-sd")
        | {
            "2 processes": tested(
                *(f"tests/cli/test_search.py::test_two_processes_find_what_one_finds[{k}]" for k in ("beam", "smc"))
            )
        },
    ),
    Row("Latent search", "Stable Diffusion XL", search("sdxl")),
    Row("Latent search", "Stable Diffusion 3", search("sd3")),
    Row("Latent search", "FLUX.1", contract("search-flux")),
    Row("Latent search", "AnimateDiff", search("animatediff")),
    Row("Latent search", "Latte", search("latte")),
    Row("Latent search", "CogVideoX", search("cogvideox")),
    Row("Latent search", "Wan 2.1", search("wan-2.1")),
    Row("Latent search", "Wan 2.2", search("wan-2.2")),
    Row("Latent search", "HunyuanVideo", search("hunyuan")),
    Row("Latent search", "LTX", search("ltx")),
    Row("Latent search", "text-to-video-SD", search("text-to-video-sd")),
    *(
        Row("Latent search", base, {"works": tested(f"{_SEARCHED}::{_RUNS}[{name}]")})
        for base, name in SEARCHED.items()
    ),
    *(
        Row(
            "Latent search",
            base,
            {"works": refused(why, f"{_SEARCHED}::{_REFUSES}[{name}]")},
        )
        for base, name, why in (
            ("FLUX.1 Fill", "fill", "starts from a picture"),
            ("Qwen-Image-Edit-Plus", "qwen-image-edit-plus", "takes one sample at a time"),
        )
    ),
    Row(
        "Latent search",
        "Wan, modular",
        {
            "works": tested(
                "tests/pipelines/latent_search/test_modular.py::test_the_whole_search_runs_and_guidance_stays_on",
                f"{_BLOCKS}::test_the_images_are_those_of_the_class[search-wan]",
            )
        },
    ),
    *(
        Row(
            "Guided decoding",
            base,
            {
                "works": tested(
                    *(f"{_DECODING}::test_carried_cache_changes_no_token[{name}-{n}]" for n in ("one", "many"))
                )
            }
            | ({"LoRA": tested(f"{_DECODING}::test_adapters")} if name == "llama" else {}),
        )
        for base, name in (
            ("Llama", "llama"),
            ("GPT-2", "gpt2"),
            ("Mistral", "mistral"),
            ("Gemma 2", "gemma2"),
            ("LFM2", "lfm2"),
            ("Mamba 2", "mamba2"),
        )
    ),
    *(
        Row(method, base, {"works": tested(f"tests/decoding/{file}[{name}]")})
        for method, file in (
            ("QAlign", "test_qalign.py::test_proposals_come_from_the_law_of_the_first_draw"),
            ("Transfer Q*", "test_transfer_q.py::test_tokens_are_those_of_the_plain_loop"),
        )
        for base, name in (
            ("Llama", "llama"),
            ("GPT-2", "gpt2"),
            ("Mistral", "mistral"),
            ("Gemma 2", "gemma2"),
            ("LFM2", "lfm2"),
            ("Mamba 2", "mamba2"),
        )
    ),
    Row(
        "SVDecode",
        "Llama",
        {
            "works": tested("tests/decoding/test_svdecode.py::test_tokens_are_those_of_steered_logits[kl_gradient]"),
            "LoRA": tested(
                "tests/decoding/test_svdecode.py::test_every_kind_of_adapter_has_the_plain_model_as_its_base[lora]"
            ),
        },
    ),
    *(
        Row(
            "Steering",
            base,
            {"works": tested(f"tests/steering/test_vector.py::test_architectures[{name}]")}
            | (
                {
                    "LoRA": tested("tests/steering/test_vector.py::test_a_lora_beside_it_and_half_precision"),
                    "half precision": tested("tests/functional/test_steering.py::test_half_precision_is_rounded_once"),
                    "CPU offload": tested(
                        *(f"{_WAYS}::test_offloaded_and_dispatched_models[{how}]" for how in ("one by one", "disk"))
                    ),
                    "torch.compile": tested(
                        *(
                            f"{_WAYS}::test_compiled_models_notice_what_comes_and_goes[{w}]"
                            for w in ("wrapped", "in place")
                        ),
                        word="tested without code generation",
                    ),
                    "quantized": tested(f"{_WAYS}::test_quantized_weights"),
                }
                if name == "Llama"
                else {}
            ),
        )
        for base, name in _LANGUAGE_MODELS
    ),
    *(
        Row(
            "CHES",
            base,
            {"works": tested(f"{_DATA}/test_ches.py::test_architectures[{name}]")}
            | (
                {
                    "LoRA": tested(f"{_DATA}/test_ches.py::test_an_adapter_counts"),
                    "half precision": tested(
                        f"{_DATA}/test_ches.py::test_a_model_in_half_precision_is_summed_in_full"
                    ),
                }
                if name == "Llama"
                else {}
            ),
        )
        for base, name in _LANGUAGE_MODELS
    ),
    Row(
        "GIST",
        "Llama",
        {
            "works": tested(f"{_DATA}/test_gist.py::test_gradients_of_a_batch_are_those_of_its_rows[everything]"),
            "LoRA": tested(f"{_DATA}/test_gist.py::test_gradients_of_a_batch_are_those_of_its_rows[lora]"),
        },
    ),
    *(
        Row(
            "ELBO-T2IAlign",
            base,
            {"works": tested(f"{_ALIGN}::test_exchanging_the_classes_exchanges_the_results[{name}]")}
            | ({"torch.compile": refused("attention cannot be seen", _UNSEEN)} if name == "sd" else {}),
        )
        for base, name in (
            ("Stable Diffusion 1, 2", "sd"),
            ("Stable Diffusion XL", "sdxl"),
            ("Stable Diffusion 3", "sd3"),
            ("FLUX.1", "flux"),
        )
    ),
    Row("ELBO-T2IAlign", "other denoisers", {"works": refused("attention is not understood", f"{_ALIGN}::{_OTHERS}")}),
    Row(
        "D²-Align",
        "Stable Diffusion 1, 2",
        {"works": tested(f"{_LED}::test_a_fit_leaves_the_generator_alone_and_keeps_the_margin")},
    ),
    Row(
        "FADE",
        "causal language models",
        {
            "works": tested("tests/evaluation/test_fade_texts.py::test_the_estimators_agree_and_the_first_is_sharper"),
            "LoRA": tested(
                "tests/evaluation/test_fade_texts.py::test_the_reference_may_be_the_base_or_another_adapter"
            ),
        },
    ),
    *(
        Row(
            "FADE",
            base,
            {"works": tested(f"{_FADE}::test_a_copy_is_at_distance_zero_and_directions_are_exchanged[{n}]")},
        )
        for base, n in (
            ("Stable Diffusion XL", "sdxl"),
            ("Stable Diffusion 3", "sd3"),
            ("FLUX.1", "flux"),
            ("AnimateDiff", "animatediff"),
            ("Latte", "latte"),
            ("CogVideoX", "cogvideox"),
            ("Wan 2.1", "wan-2.1"),
            ("HunyuanVideo", "hunyuan"),
            ("LTX", "ltx"),
        )
    ),
    Row("FADE", "DiT (classes)", {"works": tested(f"{_FADE}::test_classes_may_stand_for_prompts")}),
    Row("FADE", "Wan 2.2", {"works": refused("two denoisers", f"{_FADE}::{_TWO}")}),
]

# ------------------------------------------------------------------------------------------------------- training

TRAINING = (
    "trains",
    "LoRA",
    "accumulation",
    "resume",
    "checkpointing",
    "DDP, 2 processes",
    "torch.compile",
    "quantized",
    "FSDP",
    "DeepSpeed",
    "CUDA",
)


def trains(row: str) -> dict[str, Cell]:
    """What the contract suite of the trainers holds for its row."""
    file = "tests/trainers/test_contract.py"
    return {
        "trains": tested(f"{file}::test_trains_every_parameter[{row}]"),
        "LoRA": tested(f"{file}::test_lora_trains_the_adapter_and_nothing_else[{row}]"),
        "accumulation": tested(f"{file}::test_accumulating_is_a_larger_batch[{row}]"),
        "resume": tested(*(f"{file}::test_resumed_run_is_the_uninterrupted_one[{k}-{row}]" for k in ("full", "lora"))),
    }


def both(test: str) -> dict[str, Cell]:
    """A test with and without LoRA."""
    return {"trains": tested(f"{test}[full]"), "LoRA": tested(f"{test}[lora]")}


_INVARIANTS = "tests/trainers/test_invariants.py"


def denoiser_in_shards(method: str, *, same: bool = False) -> dict[str, Cell]:
    """What the diffusion trainers do with shards, whatever the pipeline; `same`: the whole trajectory was compared."""
    refuses = "tests/trainers/test_distributed.py::test_diffusion_trainers_refuse_to_shard"
    fsdp = refused("use DDP", f"{refuses}[{method.lower()}-FSDP]")
    if method in ("Diffusion-DPO", "Diffusion-KTO"):
        test = f"{_INVARIANTS}::test_sharded_denoisers_take_the_same_way[{method.lower()}]"
        every = "tests/trainers/diffusion_preference/test_launch.py::test_every_family_trains_in_shards"
        fsdp = tested(test if same else every, word="tested: FSDP2")
    refusal = f"{refuses}[{method.lower()}-ZeRO-3]"
    if same:
        return {"FSDP": fsdp} | zero_2(method.lower(), refusal)
    return {"FSDP": fsdp, "DeepSpeed": Cell("ZeRO-3 refused: use DDP; else untested", (refusal,))}


def zero_2(name: str, refusal: str) -> dict[str, Cell]:
    test = f"{_INVARIANTS}::test_deepspeed_takes_the_same_way[{name}-2x1z2]"
    return {"DeepSpeed": Cell("tested: ZeRO-2; ZeRO-3 refused", (test, refusal))}


def distributed(name: str, *launched: str) -> dict[str, Cell]:
    """Steps, processes and checkpointing of activations: one trajectory."""
    same = f"{_INVARIANTS}::test_the_trajectory_depends_on_the_rows_of_a_step_alone[{name}]"
    return {"checkpointing": tested(same), "DDP, 2 processes": tested(same, *launched)}


def sharded(name: str) -> dict[str, Cell]:
    same = f"{_INVARIANTS}::test_deepspeed_takes_the_same_way"
    return {
        "FSDP": tested(f"{_INVARIANTS}::test_sharded_weights_take_the_same_way[{name}]", word="tested: FSDP2"),
        "DeepSpeed": tested(*(f"{same}[{name}-2x1z{stage}]" for stage in (2, 3)), word="tested: ZeRO-2, ZeRO-3"),
    }


_TRAINERS = "tests/trainers"
_HEADS = "tests/heads/test_objective_heads.py::test_routed_log_probs_are_those_that_generation_uses"
_TWO = "test_launch.py::test_two_processes_are_one_larger_batch"
TRAINERS = [
    Row(
        "BCO",
        "Llama",
        trains("BCOTrainer")
        | distributed("bco", *(f"{_TRAINERS}/bco/{_TWO}[{case}]" for case in ("ema", "running_mean")))
        | sharded("bco"),
    ),
    Row(
        "BCO",
        "Mixtral",
        both(f"{_TRAINERS}/bco/test_bco_trainer.py::test_mixture_of_experts_adds_its_auxiliary_loss"),
    ),
    Row(
        "BCO",
        "LLaVA",
        both(f"{_TRAINERS}/bco/test_vision.py::test_trains_on_pictures_and_weights_reach_the_loss"),
    ),
    Row(
        "f-DPG",
        "Llama",
        trains("FDPGTrainer")
        | distributed(
            "f-dpg",
            *(
                f"{_TRAINERS}/f_dpg/test_launch.py::test_two_processes_are_one[{case}]"
                for case in ("exponential", "distributional")
            ),
        )
        | sharded("f-dpg"),
    ),
    Row("f-DPG", "Mixtral", both(f"{_TRAINERS}/f_dpg/test_models.py::test_experts_are_balanced")),
    Row("f-DPG", "LLaVA", both(f"{_TRAINERS}/f_dpg/test_models.py::test_pictures")),
    Row(
        "MAH-DPO",
        "Llama",
        trains("MAHDPOTrainer")
        | distributed("mah-dpo", *(f"{_TRAINERS}/mah_dpo/{_TWO}[{case}]" for case in ("full", "low_rank")))
        | sharded("mah-dpo")
        | zero_2("mah-dpo", f"{_TRAINERS}/mah_dpo/test_mah_dpo_trainer.py::test_heads_are_refused_under_zero_3[full]"),
    ),
    Row(
        "MAH-DPO",
        "Mixtral",
        both(f"{_TRAINERS}/mah_dpo/test_mah_dpo_trainer.py::test_experts_are_balanced_as_by_dpo"),
    ),
    *(
        Row(
            "MAH-DPO",
            base,
            {"trains": tested(*(f"{_HEADS}[{name}-{head}]" for head in ("full", "low_rank")), word="heads tested")},
        )
        for base, name in (
            ("Gemma 2", "soft cap"),
            ("Granite", "logits scaling"),
            ("Cohere", "logit scale"),
            ("Phi", "bias"),
        )
    ),
    Row(
        "Process rewards",
        "Llama",
        trains("ProcessRewardTrainer")
        | distributed("process-reward", f"{_TRAINERS}/process_reward/{_TWO}")
        | sharded("process-reward"),
    ),
    Row("Concept DAS", "Llama", trains("CDASTrainer")),
    *(
        row
        for method, trainer in (
            ("Diffusion-DPO", "DiffusionDPOTrainer"),
            ("Inversion-DPO", "InversionDPOTrainer"),
            ("SmPO", "SmPOTrainer"),
        )
        for row in (
            Row(
                method,
                "Stable Diffusion 1, 2",
                trains(trainer)
                | distributed(
                    method.lower(), f"{_TRAINERS}/diffusion_preference/{_TWO}[{trainer.removesuffix('Trainer')}]"
                )
                | denoiser_in_shards(method, same=True),
            ),
            Row(method, "Stable Diffusion XL", trains(f"{trainer}-sdxl") | denoiser_in_shards(method)),
            Row(method, "Stable Diffusion 3", trains(f"{trainer}-sd3") | denoiser_in_shards(method)),
            Row(method, "FLUX.1", trains(f"{trainer}-flux") | denoiser_in_shards(method)),
        )
    ),
    Row(
        "Diffusion-KTO",
        "Stable Diffusion 1, 2",
        trains("DiffusionKTOTrainer") | distributed("diffusion-kto") | denoiser_in_shards("Diffusion-KTO", same=True),
    ),
    Row(
        "AlignProp",
        "Stable Diffusion 1, 2",
        trains("AlignPropTrainer") | distributed("alignprop") | denoiser_in_shards("AlignProp", same=True),
    ),
    Row(
        "DDPO",
        "Stable Diffusion 1, 2",
        trains("DDPOTrainer") | distributed("ddpo") | denoiser_in_shards("DDPO", same=True),
    ),
    # settings of `SmPOTrainer`
    Row("InPO", "Stable Diffusion 1, 2", trains("InPO") | distributed("inpo") | denoiser_in_shards("SmPO")),
]

# What a cell shows, so that a table fits a page; the page explains them.
SIGNS = {
    "tested": "✓",
    "tested without code generation": "✓",
    "tested: FSDP2": "✓ FSDP2",
    "tested: ZeRO-2, ZeRO-3": "✓ ZeRO-2, ZeRO-3",
    "tested: ZeRO-2; ZeRO-3 refused": "✓ ZeRO-2; ZeRO-3 refused",
}
TABLES = {"Without training": (WITHOUT, PIPELINES), "Training": (TRAINING, TRAINERS)}


# ----------------------------------------------------------------------------------------------------------- writing


def cells() -> Iterator[Cell]:
    """All cells that say something, in the order of the page."""
    for columns, rows in TABLES.values():
        for row in rows:
            assert row.cells.keys() <= set(columns), f"{row.method}, {row.base}: {row.cells.keys() - set(columns)}"
            yield from (row.cells[column] for column in columns if column in row.cells)


def as_markdown() -> str:
    """The tables, their cells numbered, and what the numbers stand for."""
    numbers = {test: k for k, test in enumerate(dict.fromkeys(_function(t) for c in cells() for t in c.tests), 1)}
    lines = []
    for title, (columns, rows) in TABLES.items():
        heads = ["`torch.compile`" if column == "torch.compile" else column for column in columns]
        lines += [
            f"## {title}",
            "",
            f"| method | base model | {' | '.join(heads)} |",
            "|---" * (len(columns) + 2) + "|",
        ]
        lines += [
            f"| {row.method} | {row.base} | {' | '.join(_say(row, c, numbers) for c in columns)} |" for row in rows
        ]
        lines.append("")
    lines += ["## The tests", "", *(f"{number}. `{test}`" for test, number in numbers.items())]
    return "\n".join(lines) + "\n"


def _function(test: str) -> str:
    return test.partition("[")[0]


def _say(row: Row, column: str, numbers: dict[str, int]) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return "·" if not row.cells[next(iter(row.cells))].word.startswith("refused") else ""
    found = sorted({numbers[_function(test)] for test in cell.tests})
    return f"{SIGNS.get(cell.word, cell.word)} <sup>{', '.join(map(str, found))}</sup>"


if __name__ == "__main__":
    head, mark, _ = re.split(r"(<!-- tables -->\n)", PAGE.read_text())
    PAGE.write_text(f"{head}{mark}\n{as_markdown()}")
