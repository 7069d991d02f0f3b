# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Every upstream name that the trainers override or call still is what they rely on.

When a test here fails after an upgrade, read what changed upstream before touching the table.
"""

import copy
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, DynamicCache, TrainerState
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from trl.trainer.utils import add_fused_lm_head

from alignext.decoding.guided import cache_name
from alignext.heads.objective_heads import logit_transform

from ..seams import parameters, resolve
from .contract import MINI_LM, Row, count_vowels, preference, prompts, unpaired


# Name -> all its parameters: an override has to take exactly these.
OVERRIDDEN = {
    # BCO
    "trl.KTOTrainer.__init__": (
        "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks "
        "optimizers quantization_config peft_config"
    ),
    "trl.KTOTrainer._prepare_dataset": "dataset processing_class args dataset_name",
    "trl.KTOTrainer._set_signature_columns_if_needed": "",
    "trl.KTOTrainer._compute_loss": "model inputs return_outputs",
    "transformers.TrainerCallback.on_train_begin": "args state control **kwargs",
    "transformers.trainer_callback.ExportableState.state": "",
    # f-DPG
    "trl.RLOOTrainer.__init__": (
        "model reward_funcs args train_dataset eval_dataset processing_class reward_processing_classes callbacks "
        "optimizers quantization_config peft_config"
    ),
    "trl.RLOOTrainer._calculate_rewards": "inputs prompts completions completion_ids_list",
    "trl.RLOOTrainer._generate_and_score_completions": "inputs",
    "trl.RLOOTrainer._compute_loss": "model inputs",
    "trl.RLOOTrainer._get_per_token_logps_and_entropies": (
        "model input_ids attention_mask logits_to_keep batch_size compute_entropy compute_aux_loss pixel_values "
        "image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes token_type_ids "
        "mm_token_type_ids image_position_ids"
    ),
    "trl.RLOOTrainer._save_checkpoint": "model trial",
    "trl.RLOOTrainer._load_optimizer_and_scheduler": "checkpoint",
    # MAH-DPO
    "trl.DPOTrainer.__init__": (
        "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks "
        "optimizers quantization_config peft_config"
    ),
    "trl.DPOTrainer._prepare_dataset": "dataset processing_class args dataset_name",
    "trl.DPOTrainer._set_signature_columns_if_needed": "",
    "trl.DPOTrainer._get_train_sampler": "train_dataset",
    "trl.DPOTrainer._compute_loss": "model inputs return_outputs",
    "trl.DPOTrainer.compute_ref_log_probs": "model inputs",
    "trl.DPOTrainer._precompute_ref_logps": "dataset name batch_size",
    "trl.DPOTrainer.log": "logs start_time",
    "transformers.PreTrainedModel._init_weights": "module",
    "transformers.PreTrainedModel.resize_token_embeddings": "new_num_tokens pad_to_multiple_of mean_resizing",
    # Process rewards
    "trl.RewardTrainer.__init__": (
        "model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks optimizers "
        "optimizer_cls_and_kwargs preprocess_logits_for_metrics quantization_config peft_config"
    ),
    "trl.RewardTrainer._prepare_dataset": "dataset processing_class args dataset_name",
    "trl.RewardTrainer._set_signature_columns_if_needed": "",
    "trl.RewardTrainer.compute_loss": "model inputs return_outputs num_items_in_batch",
    "trl.RewardTrainer.create_model_card": "model_name dataset_name tags",
    # Inversion-DPO, Diffusion-DPO, SmPO
    "transformers.Trainer._set_signature_columns_if_needed": "",
    "transformers.Trainer.compute_loss": "model inputs return_outputs num_items_in_batch",
    "transformers.Trainer.training_step": "model inputs num_items_in_batch",
    "transformers.Trainer.get_eval_dataloader": "eval_dataset",
    "transformers.Trainer.prediction_step": "model inputs prediction_loss_only ignore_keys",
    "transformers.Trainer.log": "logs start_time",
    "transformers.Trainer._save": "output_dir state_dict",
    "transformers.Trainer._load_from_checkpoint": "resume_from_checkpoint model",
    "transformers.Trainer._load_best_model": "",
    "transformers.Trainer._push_from_checkpoint": "checkpoint_folder",
    "transformers.Trainer._save_checkpoint": "model trial",
    "transformers.Trainer.create_model_card": (
        "language license tags model_name finetuned_from tasks dataset_tags dataset dataset_args"
    ),
}

# Name -> the parameters that we pass.
CALLED = {
    # BCO
    "trl.KTOTrainer.compute_loss": "model inputs return_outputs num_items_in_batch",
    "trl.KTOTrainer.evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "trl.KTOTrainer.log": "logs start_time",
    "trl.KTOTrainer.compute_ref_log_probs": "model inputs",
    "trl.KTOTrainer._precompute_ref_logps": "dataset name batch_size",
    "trl.trainer.kto_trainer.DataCollatorForUnpairedPreference.torch_call": "examples",
    "trl.trainer.kto_trainer.DataCollatorForVisionUnpairedPreference.torch_call": "examples",
    "trl.models.utils.disable_gradient_checkpointing": "model gradient_checkpointing_kwargs",
    "trl.trainer.utils.use_adapter": "model adapter_name",
    "accelerate.utils.is_peft_model": "model",
    "accelerate.Accelerator.reduce": "tensor reduction",
    # f-DPG
    "trl.trainer.utils.add_fused_lm_head": "model temperature outputs",
    "trl.trainer.utils.disable_dropout_in_model": "model",
    "trl.models.utils.prepare_deepspeed": "model accelerator",
    "trl.models.utils.prepare_fsdp": "model accelerator",
    "accelerate.Accelerator.prepare_model": "model evaluation_mode",
    "trl.trainer.utils.shuffle_sequence_dict": "seq_dict",
    "trl.trainer.utils.split_tensor_dict": "tensor_dict num_chunks",
    "accelerate.utils.gather": "tensor",
    "accelerate.utils.gather_object": "object",
    # MAH-DPO
    "trl.trainer.dpo_trainer.DataCollatorForPreference.torch_call": "examples",
    "trl.trainer.utils.FusedCausalLMOutput": "loss log_probs entropy mean_logits is_top1 label_mask aux_loss",
    "trl.trainer.utils.create_model_from_path": "model_id architecture",
    "transformers.DynamicCache": "config",
    "transformers.DynamicCache.batch_repeat_interleave": "repeats",
    "transformers.DynamicCache.batch_select_indices": "indices",
    "transformers.DynamicCache.crop": "tokens_to_remove",
    # Process rewards and guided decoding
    "trl.data_utils.get_dataset_column_names": "dataset",
    "trl.trainer.utils.get_config_model_id": "config",
    "trl.trainer.utils.global_then_local_main_first": "",
    "trl.trainer.utils.pad": "tensors padding_value padding_side pad_to_multiple_of",
    "transformers.cache_utils.Cache.reorder_cache": "beam_idx",
    "transformers.cache_utils.Cache.update": "key_states value_states layer_idx",
    "transformers.cache_utils.DynamicLayer": "",
    "transformers.utils.peft_utils.find_adapter_config_file": "model_id",
    # Inversion-DPO, Diffusion-DPO, SmPO
    "diffusers.training_utils.cast_training_params": "model dtype",
    "diffusers.StableDiffusionPipeline.save_lora_weights": "unet_lora_layers unet_lora_adapter_metadata",
    "diffusers.StableDiffusionXLPipeline.save_lora_weights": "unet_lora_layers unet_lora_adapter_metadata",
    "diffusers.StableDiffusion3Pipeline.save_lora_weights": (
        "transformer_lora_layers transformer_lora_adapter_metadata"
    ),
    "diffusers.FluxPipeline.save_lora_weights": "transformer_lora_layers transformer_lora_adapter_metadata",
    "diffusers.StableDiffusionPipeline.lora_state_dict": "pretrained_model_name_or_path_or_dict",
    "diffusers.FluxPipeline.lora_state_dict": "pretrained_model_name_or_path_or_dict",
    "diffusers.StableDiffusionPipeline.encode_prompt": (
        "prompt device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.StableDiffusionXLPipeline.encode_prompt": (
        "prompt device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.StableDiffusion3Pipeline.encode_prompt": (
        "prompt prompt_2 prompt_3 device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.FluxPipeline.encode_prompt": "prompt prompt_2 device num_images_per_prompt max_sequence_length",
    "diffusers.FluxPipeline._pack_latents": "latents batch_size num_channels_latents height width",
    "diffusers.FluxPipeline._unpack_latents": "latents height width vae_scale_factor",
    "diffusers.FluxPipeline._prepare_latent_image_ids": "batch_size height width device dtype",
    "diffusers.pipelines.flux.pipeline_flux.calculate_shift": (
        "image_seq_len base_seq_len max_seq_len base_shift max_shift"
    ),
    "diffusers.UNet2DConditionModel.add_adapter": "adapter_config adapter_name",
    "peft.get_peft_model_state_dict": "model adapter_name",
    "peft.set_peft_model_state_dict": "model peft_model_state_dict adapter_name",
    "diffusers.FlowMatchEulerDiscreteScheduler.set_timesteps": "num_inference_steps device sigmas mu timesteps",
    "accelerate.Accelerator.gather_for_metrics": "input_data",
    "accelerate.Accelerator.no_sync": "model",
    "accelerate.Accelerator.unwrap_model": "model",
}

# Attributes of classes and modules.
PRESENT = [
    "trl.KTOTrainer.loss_is_scaled_for_ga",
    "transformers.Trainer.loss_is_scaled_for_ga",
    "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING",
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict",
    "transformers.PreTrainedModel._no_split_modules",
    "transformers.DynamicCache.is_croppable",
    "transformers.modeling_layers.GenericForTokenClassification",
    "diffusers.StableDiffusionPipeline.unet_name",
    "diffusers.FluxPipeline.transformer_name",
    "diffusers.StableDiffusion3Pipeline.transformer_name",
    "peft.tuners.tuners_utils.BaseTunerLayer._active_adapter",
    "peft.tuners.tuners_utils.BaseTunerLayer.active_adapters",
    "transformers.trainer.TRAINING_ARGS_NAME",
    "transformers.trainer_utils.PREFIX_CHECKPOINT_DIR",
    "transformers.trainer_utils.HubStrategy.END",
    "transformers.Trainer.save_model",
]

KTO = Row(KTOTrainer, KTOConfig, unpaired, {"loss_type": "apo_zero_unpaired"})
DPO = Row(DPOTrainer, DPOConfig, preference)
REWARD = Row(RewardTrainer, RewardConfig, preference)
RLOO = Row(
    RLOOTrainer,
    RLOOConfig,
    prompts,
    {"num_generations": 2, "max_completion_length": 8},
    {"reward_funcs": count_vowels},
)

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_signature_is_unchanged(name: str) -> None:
    assert parameters(name) == OVERRIDDEN[name].split()


@pytest.mark.parametrize("name", CALLED)
def test_called_signature_takes_what_we_pass(name: str) -> None:
    assert set(CALLED[name].split()) <= set(parameters(name))


@pytest.mark.parametrize("name", PRESENT)
def test_name_is_there(name: str) -> None:
    resolve(name)


ATTRIBUTES = {
    KTO: (
        "beta loss_type ref_model precompute_ref_logps aux_loss_enabled router_aux_loss_coef calculate_KL "
        "desirable_weight undesirable_weight _metrics _total_train_tokens _tp_size _is_vision_dataset _tokenizer "
        "_signature_columns data_collator callback_handler"
    ),
    DPO: (
        "beta ref_model precompute_ref_logps aux_loss_enabled router_aux_loss_coef _metrics data_collator loss_types "
        "loss_weights label_smoothing _total_train_tokens _tp_size _signature_columns"
    ),
    RLOO: (
        "beta ref_model temperature num_generations num_generations_eval num_iterations reward_funcs "
        "reward_func_names reward_weights aux_loss_enabled router_aux_loss_coef model_wrapped _metrics _logs _step "
        "_buffered_inputs"
    ),
    REWARD: "_metrics _total_train_tokens _tp_size label_names data_collator hub_model_id",
}


@pytest.mark.parametrize("row", ATTRIBUTES, ids=str)
def test_attributes_are_set_by_the_constructor(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path)
    assert not [name for name in ATTRIBUTES[row].split() if not hasattr(trainer, name)]
    assert set(trainer._metrics) == {"train", "eval"}


def test_one_kto_loss_does_without_kl(tmp_path: Path) -> None:
    # BCO runs KTO's constructor under this name of a loss: no KL columns, any order, batches of one
    trainer = KTO.start(tmp_path, per_device_train_batch_size=1, train_sampling_strategy="random")
    assert not trainer.calculate_KL
    # the text columns survive preparation, so that weights can be computed from them
    assert {"prompt", "completion", "label", "prompt_ids", "completion_ids"} == set(trainer.train_dataset.column_names)


def test_batch_of_kto_has_the_keys_the_loss_reads(tmp_path: Path) -> None:
    batch = next(iter(KTO.start(tmp_path).get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "label"}
    assert batch["label"].dtype == torch.bool


def test_batch_of_dpo_is_chosen_then_rejected(tmp_path: Path) -> None:
    batch = next(iter(DPO.start(tmp_path).get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask"}
    prompts_of_both = [
        ids[~mask.bool()] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    for chosen, rejected in zip(prompts_of_both[:4], prompts_of_both[4:], strict=True):
        length = min(len(chosen), len(rejected))  # what is longer is padding
        assert torch.equal(chosen[:length], rejected[:length])


def test_scored_completions_of_rloo_have_the_keys_we_add_to(tmp_path: Path) -> None:
    trainer = RLOO.start(tmp_path)
    trainer.model.train()
    scored = trainer._generate_and_score_completions([{"prompt": "One day"}] * 4)
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logps", "advantages"} <= set(scored)
    assert scored["old_logps"].shape == scored["advantages"].shape == (4,)
    assert len(trainer._logs["advantages"]) == 4


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_rloo_scores_samples_with_the_policy_and_then_with_the_reference(tmp_path: Path, lora: bool) -> None:
    # f-DPG reads both from the calls
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]) if lora else None
    trainer, seen = RLOO.start(tmp_path, peft_config=adapter), []
    score = trainer._get_per_token_logps_and_entropies

    def noted(model: torch.nn.Module, *args: object, **kwargs: object) -> tuple:
        disabled = lora and model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters
        seen.append("reference" if model is trainer.ref_model or disabled else "policy")
        return score(model, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = noted
    trainer.model.train()
    trainer._generate_and_score_completions([{"prompt": "One day"}] * 4)
    assert seen == ["policy", "reference"]


def test_fused_head_of_a_copy_calls_the_original(tmp_path: Path) -> None:
    # hence f-DPG drops the patched forward of a copy before it adds a head of its own
    model = RLOO.start(tmp_path).model
    twin = copy.deepcopy(model)
    vars(twin).pop("forward")
    with torch.no_grad():
        twin.get_input_embeddings().weight.zero_()
        ids = torch.tensor([[1, 300, 400]])
        assert not torch.equal(twin(ids).logits, model(ids).logits)


def test_rloo_loads_no_reference_without_beta(tmp_path: Path) -> None:
    assert RLOO.start(tmp_path, beta=0.0).ref_model is None


def test_fused_head_gives_log_probabilities_of_the_labels() -> None:
    model = AutoModelForCausalLM.from_pretrained(MINI_LM)
    ids = torch.tensor([[1, 300, 400, 500], [1, 600, 700, 800]])
    labels = torch.tensor([[-100, -100, 400, 500], [-100, 600, 700, 800]])
    with torch.no_grad():
        expected = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits"))
        output = model(ids, labels=labels, fused_lm_head=True)
    expected[labels[:, 1:] == -100] = 0.0
    assert torch.allclose(output.log_probs, expected, atol=1e-5)
    assert output.entropy.shape == output.mean_logits.shape == output.log_probs.shape


def test_fused_head_reads_the_transforms_that_low_rank_heads_read() -> None:
    read = set(re.findall(r'text_config, "(\w+)"', inspect.getsource(add_fused_lm_head)))
    experts = {"output_router_logits", "router_aux_loss_coef"}
    ours = set(re.findall(r'"(\w+)"', inspect.getsource(logit_transform))) - {"hyperclovax"}
    assert read - experts == ours


def test_trainer_state_keeps_the_state_of_callbacks() -> None:
    assert "stateful_callbacks" in {field.name for field in dataclasses.fields(TrainerState)}


def test_cache_is_cropped_by_a_negative_count() -> None:
    model = AutoModelForCausalLM.from_pretrained(MINI_LM)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([[1, 300, 400, 500]]), **{str(cache_name(model)): cache})
    assert cache.is_croppable
    cache.crop(-1)
    assert cache.get_seq_length() == 3
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2]))
    assert cache.layers[0].keys.shape[0] == 1
