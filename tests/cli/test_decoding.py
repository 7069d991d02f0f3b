# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext generate --method`: every decoding method from a terminal, and what is refused before anything loads."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from alignext import cli, mini


TINY = LlamaConfig(
    vocab_size=4096,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    bos_token_id=1,
    eos_token_id=1,
    pad_token_id=2,
)
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """A language model, an adapter of it, and a reward."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("model", "adapter", "reward")}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TINY).save_pretrained(folders["model"])
    model = AutoModelForCausalLM.from_pretrained(folders["model"])
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    model.save_pretrained(folders["adapter"])
    config = LlamaConfig(**TINY.to_dict() | {"num_labels": 1, "initializer_range": 0.3})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folders["reward"])
    for folder in folders.values():
        AutoTokenizer.from_pretrained(mini.path("lm")).save_pretrained(folder)
    return folders


@pytest.mark.parametrize(
    "words",
    [
        ["qalign", "--steps", "2", "--beta", "0.5"],
        ["transfer-q", "--k", "2", "--rollout-tokens", "2", "--commit-tokens", "2", "--alpha", "0.5"],
        ["guided", "--candidates", "2"],
    ],
    ids=lambda words: words[0],
)
def test_methods_with_a_reward_write(saved, capsys, tmp_path, words):
    shared = ["generate", "--model", str(saved["model"]), "--prompt", "Tom", "--prompt", "Lily had", "--seed", "3"]
    more = ["--reward", str(saved["reward"]), "--max-new-tokens", "6", "--save-custom-generate", str(tmp_path)]
    assert cli.main([*shared, "--method", *words, *more]) == 0, capsys.readouterr().err
    first = capsys.readouterr()
    assert first.out.startswith("Tom") and "\n\nLily had" in first.out
    assert ("accepted" in first.err) == (words[0] == "qalign")
    assert (tmp_path / "custom_generate" / "generate.py").is_file()
    assert cli.main([*shared, "--method", *words, *more]) == 0
    assert capsys.readouterr().out == first.out


def test_a_continuation_is_printed_as_it_was_written(capsys):
    """No space where the model has written none, as before a comma; its own where it has written one."""
    words = ["generate", "--model", str(mini.path("lm")), "--temperature", "0", "--max-new-tokens", "3"]
    assert cli.main([*words, "--prompt", "Once upon a time", "--prompt", "Tom had"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")[:2]
    assert first.startswith("Once upon a time, ") and second.startswith("Tom had a ")


def test_svdecode_of_an_adapter_is_calibrated(saved, capsys, tmp_path):
    rows = [{"prompt": "Tom saw", "completion": f" a {thing}."} for thing in ("dog", "cat", "bird")]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    shared = ["generate", "--model", str(saved["adapter"]), "--prompt", "Tom", "--temperature", "0"]
    shared += ["--max-new-tokens", "6", "--method", "svdecode", "--direction", "logit_difference", "--alpha", "0"]
    assert cli.main([*shared, "--calibrate", str(file)]) == 0, capsys.readouterr().err
    assert "strength" in capsys.readouterr().err
    found = []
    for strength in ("0", "3"):
        assert cli.main([*shared, "--strength", strength]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] != found[1]
    assert cli.main([*shared, "--strength", "3", "--base", str(saved["model"])]) == 0
    assert capsys.readouterr().out == found[1]


def test_a_function_in_a_file_is_a_reward(saved, capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def length(completions, **kwargs):\n    return [float(len(text)) for text in completions]\n")
    shared = ["generate", "--model", str(saved["model"]), "--prompt", "Tom", "--max-new-tokens", "4"]
    words = ["--method", "qalign", "--steps", "1", "--reward", f"{file}:length"]
    assert cli.main([*shared, *words]) == 0, capsys.readouterr().err
    assert cli.main([*shared, "--method", "qalign", "--reward", f"{file}:width"]) == 2
    assert "has no function 'width'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--method", "qalign"], "--method qalign needs --reward MODEL"),
        (["--method", "qalign", "--reward", "x", "--k", "3"], "--k belongs to --method transfer-q, received"),
        (["--beta", "1"], "--beta belongs to --method qalign or transfer-q, received --method plain"),
        (
            ["--method", "qalign", "--reward", "x", "--temperature", "0"],
            "--temperature must be above 0 for --method qal",
        ),
        (["--reward", "x", "--temperature", "0"], "--temperature must be above 0 for --method guided"),
        (["--method", "svdecode"], "needs --strength, or --calibrate FILE"),
        (["--method", "svdecode", "--calibrate", "no.jsonl"], "--calibrate no.jsonl is no file"),
        (["--save-custom-generate", "x"], "needs another --method than plain"),
        (["--method", "svdecode", "--strength", "1", "--reward", "x"], "--reward belongs to --method guided or"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_are_named(capsys, words, named):
    assert cli.main(["generate", "--model", "nowhere", "--prompt", "x", *words]) == 2
    assert named in capsys.readouterr().err
