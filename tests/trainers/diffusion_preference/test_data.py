# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Datasets of preferred pictures in all the ways they come, and batches of them."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from torch.utils.data import DataLoader

from alignext.trainers.diffusion_preference.data import PairCollator, prepare_pairs, to_rgb


COLLATE = PairCollator(16, 8)


def picture(red: int, size: tuple[int, int] = (20, 16)) -> PIL.Image.Image:
    """Not symmetric in any direction."""
    pixels = np.random.default_rng(red).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0] = red % 256
    return PIL.Image.fromarray(pixels)


def encoded(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def pairs(n: int = 3, **columns: list) -> Dataset:
    """Pair `i` has the reds `10 i` (chosen) and `10 i + 1` (rejected)."""
    rows = {
        "prompt": [f"prompt {i}" for i in range(n)],
        "image_chosen": [picture(10 * i) for i in range(n)],
        "image_rejected": [picture(10 * i + 1) for i in range(n)],
    }
    return Dataset.from_dict(rows | columns)


def pick_a_pic(labels: list[float | None], **columns: list) -> Dataset:
    n = len(labels)
    rows = {
        "caption": [f"prompt {i}" for i in range(n)],
        "jpg_0": [encoded(picture(10 * i)) for i in range(n)],
        "jpg_1": [encoded(picture(10 * i + 1)) for i in range(n)],
        "label_0": labels,
    }
    return Dataset.from_dict(rows | columns)


def reds(dataset: Dataset) -> tuple[list[int], list[int]]:
    """The reds of the winners and the losers, through the collator."""
    batch = COLLATE(list(dataset))
    values = ((batch["pixel_values"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    return values[: len(values) // 2], values[len(values) // 2 :]


# Columns


def test_a_batch_has_the_winners_first():
    batch = COLLATE(list(prepare_pairs(pairs())))
    assert batch["pixel_values"].shape == (6, 3, 16, 16)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].min() >= -1 and batch["pixel_values"].max() <= 1
    assert batch["pixel_values"].abs().max() > 0.9
    assert batch["prompts"] == ["prompt 0", "prompt 1", "prompt 2"]
    assert batch["index"].tolist() == [0, 1, 2]
    assert reds(prepare_pairs(pairs())) == ([0, 10, 20], [1, 11, 21])


def test_bytes_paths_and_pictures_give_equal_pixels(tmp_path: Path):
    images = {"image_chosen": [picture(i) for i in range(3)], "image_rejected": [picture(9 + i) for i in range(3)]}
    ways: list[dict[str, list]] = [images, {name: [encoded(i) for i in column] for name, column in images.items()}]
    paths: dict[str, list] = {}
    for name, column in images.items():
        paths[name] = [str(tmp_path / f"{name}-{i}.png") for i in range(3)]
        for image, path in zip(column, paths[name], strict=True):
            image.save(path)
    ways += [paths]
    batches = [COLLATE(list(prepare_pairs(pairs(**way))))["pixel_values"] for way in ways]
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
    # one column of bytes, the other of paths, some swapped
    mixed = pairs(image_chosen=ways[1]["image_chosen"], image_rejected=paths["image_rejected"])
    mixed = mixed.add_column("score_chosen", [0.0, 1.0, 0.0]).add_column("score_rejected", [0.5] * 3)
    swapped = COLLATE(list(prepare_pairs(mixed)))["pixel_values"]
    assert torch.equal(swapped, batches[0][[3, 1, 5, 0, 4, 2]])


def test_modes_and_orientation_come_out_as_the_viewer_shows_them():
    grey, palette = picture(5).convert("L"), picture(5).convert("P")
    assert to_rgb(encoded(grey)).mode == to_rgb(encoded(palette)).mode == "RGB"
    image = picture(7)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    image.save(file, format="PNG", exif=exif)
    assert to_rgb(file.getvalue()).size == (16, 20)
    assert to_rgb(PIL.Image.open(file)).tobytes() == to_rgb(file.getvalue()).tobytes()


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("image_chosen", "image_rejected")])
@pytest.mark.parametrize("prompt", ["prompt", "caption"])
def test_other_names_of_columns(names: tuple[str, str], prompt: str):
    renamed = {"image_chosen": names[0], "image_rejected": names[1], "prompt": prompt}
    dataset = prepare_pairs(pairs().rename_columns({a: b for a, b in renamed.items() if a != b}))
    columns = {"prompt", "image_chosen", "image_rejected", "index"}
    assert set(dataset.column_names) - {"columns"} == columns
    assert ("columns" in dataset.column_names) == any(a != b for a, b in renamed.items())
    assert reds(dataset) == ([0, 10, 20], [1, 11, 21])


def test_labels_of_pick_a_pic():
    dataset = prepare_pairs(pick_a_pic([1, 0.5, 0, 1.0, 0.5]))
    assert reds(dataset) == ([0, 21, 30], [1, 20, 31])
    assert dataset["index"][:] == [0, 2, 3]  # rows keep the numbers they had
    assert [batch["prompts"] for batch in DataLoader(dataset, collate_fn=COLLATE)] == [
        ["prompt 0"],
        ["prompt 2"],
        ["prompt 3"],
    ]


def test_the_number_of_ties_is_logged(monkeypatch: pytest.MonkeyPatch):
    from alignext.trainers.diffusion_preference import data

    said: list[str] = []
    monkeypatch.setattr(data.logger, "warning", said.append)
    prepare_pairs(pick_a_pic([1, 0.5, 0, 1.0, 0.5]))
    assert len(said) == 1 and "2 of 5" in said[0]
    prepare_pairs(pick_a_pic([1, 0]))
    assert len(said) == 1


def test_scores_order_the_pairs_unless_told_otherwise():
    scores = {"ps_score_0": [0.1, 0.9, 0.2, 0.1], "ps_score_1": [0.2, 0.3, 0.2, 0.3]}
    raw = pick_a_pic([1, 0, 0, 0.5], **scores)
    dataset = prepare_pairs(raw)
    assert reds(dataset) == ([1, 10, 20], [0, 11, 21])  # the label does not count but for the tie
    batch = COLLATE(list(dataset))
    assert torch.allclose(batch["scores"], torch.tensor([[0.2, 0.1], [0.9, 0.3], [0.2, 0.2]]))
    by_label = prepare_pairs(raw, order_by_score=False)
    assert reds(by_label) == ([0, 11, 21], [1, 10, 20])
    assert torch.allclose(COLLATE(list(by_label))["scores"], torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.2, 0.2]]))


def test_a_probability_overrides_scores():
    columns = {"score_chosen": [0.0] * 3, "score_rejected": [1.0] * 3, "preference_prob": [0.0, 0.5, 1.0]}
    dataset = prepare_pairs(pairs(**columns))
    assert reds(dataset) == ([0, 10, 20], [1, 11, 21])
    assert COLLATE(list(dataset))["preference_prob"].tolist() == [0.0, 0.5, 1.0]


def brought(raw: Dataset, stream: bool) -> Dataset:
    """As all trainers but SmPO's have it."""
    made = prepare_pairs(raw.to_iterable_dataset() if stream else raw, order_by_score=False)
    return Dataset.from_list(list(made)) if stream else made


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_label_scores_say_which_picture_is_better(stream: bool):
    raw = pick_a_pic([1] * 3, ps_score_0=[0.1, 0.9, 0.5], ps_score_1=[0.9, 0.1, 0.5]).remove_columns("label_0")
    dataset = brought(raw, stream)
    assert dataset["index"][:] == [0, 1]  # the third is a tie
    assert reds(dataset) == ([1, 10], [0, 11])
    assert dataset["score_chosen"][:] == [0.9, 0.9]
    named = pairs(score_chosen=[0.0] * 3, score_rejected=[1.0] * 3)
    assert reds(brought(named, stream)) == ([0, 10, 20], [1, 11, 21])  # the names of the columns are a label


@pytest.mark.parametrize("stream", [False, True])
def test_a_probability_says_which_picture_is_better_where_no_label_does(stream: bool):
    columns = {"preference_prob": [0.25, 0.75, 0.5], "ps_score_0": [1.0] * 3, "ps_score_1": [0.0] * 3}
    labelled = pick_a_pic([1, 0, 1], **columns)
    dataset = brought(labelled.remove_columns("label_0"), stream)
    assert dataset["index"][:] == [0, 1]
    assert reds(dataset) == ([1, 10], [0, 11])
    assert dataset["preference_prob"][:] == [0.75, 0.75]
    dataset = brought(pairs(preference_prob=[0.25, 0.75, 0.5]), stream)
    assert reds(dataset) == ([1, 10, 20], [0, 11, 21])
    dataset = brought(labelled, stream)  # it is the probability that the label is right
    assert reds(dataset) == ([0, 11, 20], [1, 10, 21])
    assert dataset["preference_prob"][:] == [0.25, 0.75, 0.5]


def test_rows_selected_and_shuffled_before(tmp_path: Path):
    raw = pick_a_pic([1, 0, 1, 0, 0.5, 1]).select([5, 3, 4, 0])
    dataset = prepare_pairs(raw)
    assert reds(dataset) == ([50, 31, 0], [51, 30, 1])
    assert dataset["index"][:] == [0, 1, 3]
    assert dataset["prompt"][:] == ["prompt 5", "prompt 3", "prompt 0"]


def buffers(table: pa.Table, names: list[str]) -> set[int]:
    """Addresses of all that these columns are made of and is large."""
    found = set()
    for name in names:
        for chunk in table.column(name).chunks:
            storage = chunk.storage if hasattr(chunk, "storage") else chunk
            found |= {b.address for b in storage.buffers() if b is not None and b.size > 10_000}
    return found


@pytest.mark.parametrize("rows", [range(60), range(59, -1, -1)], ids=["whole", "selected"])
def test_pictures_are_not_copied(rows: range):
    raw = pick_a_pic([1, 0, 0.5] * 20).select(rows)
    pictures = buffers(raw.data.table, ["jpg_0", "jpg_1"])
    assert len(pictures) == 2
    assert buffers(prepare_pairs(raw).data.table, ["image_chosen", "image_rejected"]) == pictures


def test_a_stream():
    stream = pick_a_pic([1, 0.5, 0, 1]).to_iterable_dataset()
    rows = list(prepare_pairs(stream))
    assert [row["index"] for row in rows] == [0, 2, 3]
    assert set(rows[0]) == {"prompt", "image_chosen", "image_rejected", "index", "columns"}
    batch = COLLATE(rows)
    assert torch.equal(batch["pixel_values"], COLLATE(list(prepare_pairs(pick_a_pic([1, 0.5, 0, 1]))))["pixel_values"])
    scored = prepare_pairs(pairs(score_chosen=[0.0] * 3, score_rejected=[0.0, 1.0, 0.0]).to_iterable_dataset())
    assert [row["prompt"] for row in scored] == ["prompt 0", "prompt 1", "prompt 2"]
    assert torch.equal(COLLATE(list(scored))["scores"][1], torch.tensor([1.0, 0.0]))


def test_latents_and_embeddings_stand_in_for_pictures_and_prompt():
    generator = np.random.default_rng(0)
    columns = {
        "chosen_latents": list(generator.standard_normal((3, 4, 2, 2)).astype(np.float32)),
        "rejected_latents": list(generator.standard_normal((3, 4, 2, 2)).astype(np.float32)),
        "prompt_embeds": list(generator.standard_normal((3, 5, 6)).astype(np.float32)),
        "pooled_prompt_embeds": list(generator.standard_normal((3, 7)).astype(np.float32)),
    }
    raw = Dataset.from_dict(columns | {"score_chosen": [1.0, 0.0, 1.0], "score_rejected": [0.0, 1.0, 0.0]})
    batch = COLLATE(list(prepare_pairs(raw)))
    assert batch.keys() == {"index", "latents", "prompt_embeds", "pooled_prompt_embeds", "scores"}
    chosen, rejected = columns["chosen_latents"], columns["rejected_latents"]
    expected = [chosen[0], rejected[1], chosen[2], rejected[0], chosen[1], rejected[2]]
    assert torch.equal(batch["latents"], torch.from_numpy(np.stack(expected)))
    assert torch.equal(batch["prompt_embeds"], torch.from_numpy(np.stack(columns["prompt_embeds"])))
    assert batch["pooled_prompt_embeds"].shape == (3, 7)
    with_prompt = raw.remove_columns(["prompt_embeds", "pooled_prompt_embeds"]).add_column("prompt", list("abc"))
    assert COLLATE(list(prepare_pairs(with_prompt)))["prompts"] == ["a", "b", "c"]


def test_several_captions_are_handed_on_and_nothing_is_drawn():
    rows = list(prepare_pairs(pairs(4, prompt=[["a", "b"]] * 4)))
    state = torch.get_rng_state()
    assert COLLATE(rows)["prompts"] == [["a", "b"]] * 4
    assert torch.equal(torch.get_rng_state(), state)


# Size


def test_the_short_side_covers_and_the_centre_is_kept():
    wide = PIL.Image.new("RGB", (64, 16))
    wide.paste((255, 255, 255), (24, 0, 40, 16))
    dataset = prepare_pairs(pairs(1, image_chosen=[wide], image_rejected=[wide.rotate(90, expand=True)]))
    assert (COLLATE(list(dataset))["pixel_values"] == 1).all()


def test_an_odd_resolution_is_rounded_down():
    assert PairCollator(23, 8).resolution == 16
    assert PairCollator(23, 8)(list(prepare_pairs(pairs())))["pixel_values"].shape[-2:] == (16, 16)
    with pytest.raises(ValueError, match="`resolution` is 7"):
        PairCollator(7, 8)


# Bad input


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["prompt"], r"lacks the prompt. Its columns are image_chosen, image_rejected\."),
        (["image_rejected"], r"lacks the two pictures. Its columns are prompt, image_chosen\. Expected"),
    ],
)
def test_missing_columns(missing: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        prepare_pairs(pairs().remove_columns(missing))
    with pytest.raises(ValueError, match=message):
        prepare_pairs(pairs().remove_columns(missing).to_iterable_dataset())


def test_two_pictures_without_a_preference():
    with pytest.raises(ValueError, match="lacks `label_0`"):
        prepare_pairs(pick_a_pic([1, 0]).remove_columns("label_0"))


@pytest.mark.parametrize("label", [0.7, -1.0, None])
def test_labels_out_of_range(label: float | None):
    with pytest.raises(ValueError, match="`label_0` of row 1 is"):
        prepare_pairs(pick_a_pic([1.0, label]))


def test_nothing_but_ties():
    with pytest.raises(ValueError, match="2 rows, of which 2 are ties"):
        prepare_pairs(pick_a_pic([0.5, 0.5]))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), None])
def test_probabilities_out_of_range(value: float | None):
    with pytest.raises(ValueError, match="`preference_prob` of row 2 is"):
        prepare_pairs(pairs(preference_prob=[0.5, 1.0, value]))


def test_scores_that_are_no_numbers():
    with pytest.raises(ValueError, match="`score_rejected` of row 0 is nan"):
        prepare_pairs(pairs(score_chosen=[1.0] * 3, score_rejected=[float("nan"), 0.0, 0.0]))


def test_unreadable_pictures_name_the_row():
    files = [encoded(picture(i)) for i in range(3)]
    raw = pairs(image_chosen=files, image_rejected=[files[0], files[1], b"no picture"])
    dataset = prepare_pairs(raw.select([1, 2]))
    with pytest.raises(ValueError, match="`image_rejected` of row 1: The picture cannot be read"):
        COLLATE(list(dataset))


@pytest.mark.parametrize("label", [1.0, 0.0])
@pytest.mark.parametrize("stream", [False, True])
def test_messages_have_the_names_of_the_dataset(label: float, stream: bool):
    files = [encoded(picture(i)) for i in range(2)]
    raw = pick_a_pic([label] * 2, jpg_1=[files[0], b"no picture"])
    dataset = prepare_pairs(raw.to_iterable_dataset() if stream else raw)
    with pytest.raises(ValueError, match="`jpg_1` of row 1: The picture cannot be read"):
        COLLATE(list(dataset))
    with pytest.raises(ValueError, match="`caption` of row 1 is None"):
        nameless = pick_a_pic([label] * 2, caption=["a", None])
        COLLATE(list(prepare_pairs(nameless.to_iterable_dataset() if stream else nameless)))
    with pytest.raises(ValueError, match="`ps_score_1` of row 0 is nan"):
        list(prepare_pairs(pick_a_pic([label], ps_score_0=[1.0], ps_score_1=[float("nan")])))


def test_pictures_swapped_by_score_keep_their_names():
    raw = pairs(
        2, image_rejected=[encoded(picture(1)), b"no picture"], score_chosen=[0.0] * 2, score_rejected=[1.0] * 2
    )
    raw = raw.cast_column("image_chosen", Image(decode=False))
    with pytest.raises(ValueError, match="`image_rejected` of row 1: The picture cannot be read"):
        COLLATE(list(prepare_pairs(raw)))


@pytest.mark.parametrize("column", ["caption", "jpg_0"])
def test_null_cells_are_found_at_the_door(column: str):
    raw = pick_a_pic([1.0] * 3)
    values = [*raw[column][:2], None]
    raw = pick_a_pic([1.0] * 3, **{column: values})
    with pytest.raises(ValueError, match=f"`{column}` of row 2 is None in `train_dataset`.*filter"):
        prepare_pairs(raw, name="train_dataset")
    with pytest.raises(ValueError, match=f"`{column}` of row 0 is None"):
        prepare_pairs(raw.select([2, 0]))
    assert len(prepare_pairs(raw.select([1, 0]))) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DatasetDict({"train": pairs(1), "test": pairs(1)}),
            r"received a DatasetDict of 'train', 'test'.*\['train'\]",
        ),
        ([{"prompt": "a"}], r"received a list. `Dataset.from_list`"),
        ("pairs.jsonl", "received a str"),
        (pairs(2).select([]), "must have rows, received an empty dataset"),
    ],
)
def test_what_is_no_dataset(data, message: str):
    with pytest.raises(ValueError, match=message):
        prepare_pairs(data, name="train_dataset")


def test_truncated_pictures_name_the_row():
    whole = encoded(picture(1, (64, 64)))
    rows = Dataset.from_dict(
        {"prompt": ["a"], "chosen": [whole[: len(whole) // 2]], "rejected": [whole]},
        features=Features({"prompt": Value("string"), "chosen": Image(), "rejected": Image()}),
    )
    with pytest.raises(ValueError, match="`chosen` of row 0: The picture cannot be read"):
        COLLATE(list(prepare_pairs(rows)))


def test_missing_files_and_prompts():
    with pytest.raises(ValueError, match=r"`image_chosen` of row 0: The picture no-such\.png cannot be read"):
        COLLATE(list(prepare_pairs(pairs(image_chosen=["no-such.png"] * 3))))
    with pytest.raises(ValueError, match="`prompt` of row 1 is None"):
        COLLATE(list(prepare_pairs(pairs(prompt=["a", None, "b"]))))
    for captions in ([], ["a", None]):
        with pytest.raises(ValueError, match=r"`prompt` of row 0 is \["):
            COLLATE(list(prepare_pairs(pairs(1, prompt=[captions]))))


def latents(*shapes: tuple[int, ...]) -> Dataset:
    rows = [{"prompt": "a", "chosen_latents": np.zeros(a), "rejected_latents": np.zeros(b)} for a, b in shapes]
    return Dataset.from_list([{k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in rows])


def test_latents_of_different_sizes():
    with pytest.raises(ValueError, match=r"`rejected_latents` of row 0 has shape \(4, 2, 2\), but `chosen_latents`"):
        COLLATE(list(prepare_pairs(latents(((4, 2, 4), (4, 2, 2))))))
    with pytest.raises(ValueError, match=r"`chosen_latents` of row 1 has shape"):
        COLLATE(list(prepare_pairs(latents(((4, 2, 4), (4, 2, 4)), ((4, 4, 2), (4, 4, 2))))))


def test_latents_that_are_not_finite():
    rows = latents(((4, 2, 2), (4, 2, 2))).to_list()
    rows[0]["rejected_latents"][0][0][0] = float("nan")
    with pytest.raises(ValueError, match=r"`rejected_latents` of row 0 .*float16 overflowed"):
        COLLATE(list(prepare_pairs(Dataset.from_list(rows))))


def test_a_transform_is_not_lost_silently():
    with pytest.raises(ValueError, match="has a transform"):
        prepare_pairs(pairs().with_transform(lambda rows: rows))
