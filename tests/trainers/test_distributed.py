# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The launch configurations in `examples/`, and what does not work on several devices and says so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import Trainer

from alignext.diffusion.sizes import Size
from alignext.training.runs import check_run
from alignext.training.samples import SampleGridCallback

from .invariant import ROWS


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "cpu2": DistributedType.MULTI_GPU,  # that of CPUs would start a single process
}
DIFFUSION = ["diffusion-dpo", "diffusion-kto", "inversion-dpo", "smpo", "alignprop", "ddpo"]
SHARDED = ("diffusion-dpo", "diffusion-kto")


def launched(name: str) -> tuple[SimpleNamespace, set[str]]:
    """What `accelerate launch` makes of a configuration, and the names of all its arguments."""
    parser = launch_command_parser()
    names = {action.dest for action in parser._actions}
    args = parser.parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "train.py"])
    return _validate_launch_command(args)[0], names


def test_every_configuration_is_known() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_the_configuration(name: str) -> None:
    config = ClusterConfig.from_yaml_file(str(CONFIGS / f"{name}.yaml"))  # raises where a key is unknown
    assert config.distributed_type == KINDS[name]
    assert config.num_processes > 1 and config.mixed_precision == ("no" if name == "cpu2" else "bf16")
    args, names = launched(name)
    kinds = {"use_fsdp": name == "fsdp2", "use_deepspeed": "zero" in name, "multi_gpu": name in ("ddp", "cpu2")}
    assert {kind: getattr(args, kind) for kind in kinds} == kinds
    # The sections become arguments of the launcher; accelerate does not look whether it has them.
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get(section, {})) <= names
    assert args.zero_stage == {"zero2": 2, "zero3": 3}.get(name)


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU and without `use_cpu`, each would train on all of the data and write to the same files."""
    args = SimpleNamespace(world_size=1, should_save=True, output_dir=str(tmp_path / "out"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started.*`use_cpu`"):
        check_run(args)
    assert not (tmp_path / "out").exists()
    for started, world in (("1", 1), ("2", 2)):
        monkeypatch.setenv("WORLD_SIZE", started)
        check_run(SimpleNamespace(**vars(args) | {"world_size": world}))
    assert (tmp_path / "out").is_dir()


def test_the_one_for_fsdp_makes_the_plugin_of_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    args, _ = launched("fsdp2")
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL" in str(plugin.state_dict_type) and not plugin.cpu_ram_efficient_loading


def sharding(monkeypatch: pytest.MonkeyPatch, kind: str, **plugin: Any) -> None:
    """A trainer's accelerator says that it shards."""
    make = Trainer.create_accelerator_and_postprocess
    given = SimpleNamespace(**{"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"} | plugin)

    def sharded(trainer: Trainer) -> None:
        make(trainer)
        if kind == "FSDP":
            trainer.is_fsdp_enabled = True
            monkeypatch.setattr(AcceleratorState, "fsdp_plugin", given, raising=False)
        else:
            trainer.args.deepspeed_plugin = SimpleNamespace(zero_stage=3)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "ZeRO-3") for name in DIFFUSION), *((name, "FSDP") for name in DIFFUSION if name not in SHARDED)],
)
def test_diffusion_trainers_refuse_to_shard(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharding(monkeypatch, kind)
    with pytest.raises(NotImplementedError, match=r"does not shard parameters (\(FSDP\)|by ZeRO-3).*Use DDP"):
        ROWS[name].start(tmp_path)


@pytest.mark.parametrize(
    ("settings", "plugin", "text"),
    [
        ({}, {"fsdp_version": 1}, r"shards parameters by FSDP2, received `fsdp_version` 1"),
        (
            {},
            {"state_dict_type": "SHARDED_STATE_DICT"},
            r"`fsdp_state_dict_type` must be FULL_STATE_DICT, received SH",
        ),
        ({"ema_decay": 0.9}, {}, r"`ema_decay` must be None where weights are sharded \(FSDP\), received 0\.9"),
        ({"buckets": True}, {}, r"`buckets` must be False where weights are sharded \(FSDP\), received True"),
        ({"save_full_pipeline": True}, {}, r"`save_full_pipeline` must be False where weights are sharded"),
    ],
)
def test_what_shards_do_not_go_with(
    settings: dict, plugin: dict, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharding(monkeypatch, "FSDP", **plugin)
    with pytest.raises((NotImplementedError, ValueError), match=text):
        ROWS["diffusion-dpo"].start(tmp_path, **settings)


def test_a_sharded_trainer_draws_no_samples_and_records_no_other_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ROWS["diffusion-dpo-lora"].start(tmp_path)
    trainer.is_fsdp_enabled = trainer.conditions.sealed = True
    with pytest.raises(NotImplementedError, match=r"draws in one process, and FSDP shares"):
        SampleGridCallback(trainer, ["a fox"])
    with pytest.raises(ValueError, match=r"of size \(32, 16, None\), and weights are sharded.*\(16, 16, None\)"):
        trainer.conditions(["a fox"], Size(32, 16, None))


def test_a_process_with_fewer_groups_calls_the_denoiser_as_often(tmp_path: Path) -> None:
    """What it says does not change by the calls that nobody reads."""
    trainer = ROWS["diffusion-dpo-lora"].start(tmp_path)
    numbers, x = trainer.conditions(["a fox", "an owl"]), torch.randn(2, 4, 8, 8)
    calls: list[int] = []
    trainer.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    once = trainer.model(x, torch.tensor([500.0, 100.0]), numbers)
    trainer.model.most = lambda count: count + 2
    assert torch.equal(trainer.model(x, torch.tensor([500.0, 100.0]), numbers), once) and len(calls) == 4


def test_several_backward_passes_are_refused_under_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ROWS["inversion-dpo-all-steps"].start(tmp_path)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(NotImplementedError, match=r"one backward pass per step.*Set `num_train_steps_per_pair`"):
        trainer.training_step(trainer.model, {})
