# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext alignprop` and `ddpo`: prompts and rewards by name, and what comes out."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from alignext import cli, mini


pytestmark = [
    # TRL's `ScriptArguments` and transformers' own checks read `gradient_checkpointing`, which has been renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]
REWARD = """
def warm(images, prompts, weight):
    return (images[:, 0] - images[:, 2]).mean((1, 2)) * images.new_tensor(weight)

warm.differentiable = True
"""


def words(command: str, folder: Path, *more: str) -> list[str]:
    settings = (
        "--use_cpu --max_steps 1 --per_device_train_batch_size 2 --report_to none --disable_tqdm true --use_peft "
        "--save_strategy no --activation_checkpointing false --num_inference_steps 2 --lora_r 2"
    ).split()
    return [command, "--output_dir", str(folder / "out"), *settings, *more]


def test_alignprop_from_a_file_with_a_column_for_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "prompts.csv").write_text("prompt,weight\na red fox,1\na crown,2\n")
    data = ["--dataset_name", str(tmp_path / "prompts.csv"), "--reward_funcs", f"{tmp_path}/rewards.py:warm"]
    assert cli.main(words("alignprop", tmp_path, *data, "--backprop_steps", "1")) == 0, capsys.readouterr().err
    assert f'pipe.load_lora_weights("{tmp_path}/out")' in capsys.readouterr().out
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.load_lora_weights(str(tmp_path / "out"))
    trained = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert any(weight.any() for name, weight in trained.items() if "lora_B" in name or "lora.up" in name)


def test_ddpo_from_prompts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    more = ["--prompt", "a red fox", "--reward_funcs", "compressibility", "--num_images_per_prompt", "2"]
    assert cli.main(words("ddpo", tmp_path, *more)) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("ddpo", [], "There is no reward. Pass --reward_funcs"),
        ("ddpo", ["--reward_funcs", "clipp"], "--reward_funcs must be one of aesthetic"),
        ("alignprop", ["--reward_funcs", "compressibility"], "`CompressibilityReward` does not say that it is"),
        ("alignprop", ["--reward_funcs", "brightness", "--backprop_steps", "3"], "must be at most"),
        ("ddpo", ["--reward_funcs", "style"], "The style judge knows captions"),
    ],
)
def test_mistakes(command: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words(command, tmp_path, "--prompt", "an unheard of thing", *more)) == 2
    assert said in capsys.readouterr().err
