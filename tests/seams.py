# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The names of other libraries that we override, call or set: a new release of theirs fails here, in one place.

`test_seams.py` holds every row against what is installed, and every private name in the source against the rows. When
it fails after an upgrade, read what changed upstream before touching a row.
"""

import inspect
from importlib import import_module


def resolve(name: str) -> object:
    """The object behind a dotted name; raises `AttributeError` or `ImportError` where the name ends to exist."""
    parts = name.split(".")
    module, depth = import_module(parts[0]), 1
    while depth < len(parts) and inspect.ismodule(module):
        try:
            module = getattr(module, parts[depth])
        except AttributeError:
            module = import_module(".".join(parts[: depth + 1]))
        depth += 1
    for part in parts[depth:]:
        module = getattr(module, part)
    return module


def parameters(name: str) -> list[str]:
    """The names of a callable's parameters without `self` and `ctx`, `*` and `**` included."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(resolve(name)).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in found if p.name not in ("self", "ctx")]


FLUX = "diffusers.models.transformers.transformer_flux"
QWEN = "diffusers.models.transformers.transformer_qwenimage"

# Name -> all its parameters: what overrides or replaces it has to take exactly these.
REPLACED = {
    # ------------------------------------------------------------------------------------------------- pipelines
    "diffusers.models.attention_processor.AttnProcessor2_0.__call__": (
        "attn hidden_states encoder_hidden_states attention_mask temb *args **kwargs"
    ),
    "diffusers.DDIMScheduler.step": (
        "model_output timestep sample eta use_clipped_model_output generator variance_noise return_dict"
    ),
    f"{FLUX}.FluxAttnProcessor.__call__": ("attn hidden_states encoder_hidden_states attention_mask image_rotary_emb"),
    f"{FLUX}2.Flux2AttnProcessor.__call__": (
        "attn hidden_states encoder_hidden_states attention_mask image_rotary_emb"
    ),
    f"{FLUX}2.Flux2ParallelSelfAttnProcessor.__call__": "attn hidden_states attention_mask image_rotary_emb",
    f"{QWEN}.QwenDoubleStreamAttnProcessor2_0.__call__": (
        "attn hidden_states encoder_hidden_states encoder_hidden_states_mask attention_mask image_rotary_emb"
    ),
    "diffusers.Flux2Transformer2DModel.forward": (
        "hidden_states encoder_hidden_states timestep img_ids txt_ids guidance joint_attention_kwargs return_dict "
        "kv_cache kv_cache_mode num_ref_tokens ref_fixed_timestep"
    ),
    "diffusers.QwenImageTransformer2DModel.forward": (
        "hidden_states encoder_hidden_states encoder_hidden_states_mask timestep img_shapes guidance attention_kwargs "
        "controlnet_block_samples additional_t_cond return_dict"
    ),
    "diffusers.FluxTransformer2DModel.forward": (
        "hidden_states encoder_hidden_states pooled_projections timestep img_ids txt_ids guidance "
        "joint_attention_kwargs controlnet_block_samples controlnet_single_block_samples return_dict "
        "controlnet_blocks_repeat"
    ),
    "diffusers.modular_pipelines.SequentialPipelineBlocks._get_inputs": "",
    "diffusers.modular_pipelines.SequentialPipelineBlocks.get_execution_blocks": "**kwargs",
    "diffusers.modular_pipelines.SequentialPipelineBlocks.__call__": "pipeline state",
    "diffusers.modular_pipelines.ModularPipelineBlocks.save_pretrained": "save_directory push_to_hub **kwargs",
    # -------------------------------------------------------------------------------------------------- trainers
    # BCO
    "trl.KTOTrainer.__init__": (
        "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks "
        "optimizers quantization_config peft_config"
    ),
    "trl.KTOTrainer._prepare_dataset": "dataset processing_class args dataset_name",
    "trl.KTOTrainer._set_signature_columns_if_needed": "",
    "trl.KTOTrainer._compute_loss": "model inputs return_outputs",
    "trl.KTOTrainer.log": "logs start_time",
    "trl.KTOTrainer.create_model_card": "model_name dataset_name tags",
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
    "trl.RLOOTrainer.create_model_card": "model_name dataset_name tags",
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
    "trl.DPOTrainer.create_model_card": "model_name dataset_name tags",
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
    "trl.RewardTrainer.log": "logs start_time",
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
    "transformers.Trainer._prepare_inputs": "inputs",
    "transformers.Trainer._get_output_dir": "trial",
    "transformers.Trainer.create_model_card": (
        "language license tags model_name finetuned_from tasks dataset_tags dataset dataset_args"
    ),
}

# Name -> the parameters that we pass or set.
CALLED = {
    # ------------------------------------------------------------------------------------------------- pipelines
    "diffusers.StableDiffusionPipeline.__call__": (
        "prompt height width num_inference_steps timesteps sigmas guidance_scale negative_prompt "
        "num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds ip_adapter_image "
        "ip_adapter_image_embeds output_type return_dict cross_attention_kwargs guidance_rescale "
        "callback_on_step_end callback_on_step_end_tensor_inputs"
    ),
    "diffusers.StableDiffusionXLPipeline.__call__": (
        "prompt prompt_2 height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        "negative_prompt latents pooled_prompt_embeds negative_pooled_prompt_embeds cross_attention_kwargs "
        "original_size crops_coords_top_left target_size"
    ),
    "diffusers.StableDiffusionControlNetPipeline.__call__": "image controlnet_conditioning_scale guess_mode latents",
    "diffusers.StableDiffusionXLControlNetPipeline.__call__": "image controlnet_conditioning_scale guess_mode latents",
    "diffusers.StableDiffusionPipeline.encode_prompt": (
        "prompt device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.StableDiffusionXLPipeline.encode_prompt": (
        "prompt prompt_2 device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.StableDiffusionXLPipeline._get_add_time_ids": (
        "original_size crops_coords_top_left target_size dtype text_encoder_projection_dim"
    ),
    "diffusers.StableDiffusionPipeline.prepare_extra_step_kwargs": "generator eta",
    "diffusers.pipelines.auto_pipeline._get_model": "pipeline_class_name",
    "diffusers.StableDiffusionPipeline.progress_bar": "iterable total",
    "diffusers.StableDiffusionPipeline.maybe_free_model_hooks": "",
    "diffusers.UNet2DConditionModel.forward": (
        "sample timestep encoder_hidden_states cross_attention_kwargs added_cond_kwargs return_dict "
        "down_block_additional_residuals mid_block_additional_residual"
    ),
    "diffusers.UNet2DConditionModel.set_attn_processor": "processor",
    "diffusers.models.attention_processor.Attention.set_processor": "processor",
    "diffusers.DDIMInverseScheduler.set_timesteps": "num_inference_steps device",
    "diffusers.DDIMInverseScheduler.step": "model_output timestep sample return_dict",
    "diffusers.DDIMScheduler.set_timesteps": "num_inference_steps device",
    "diffusers.AutoencoderKL.encode": "x",
    "diffusers.image_processor.VaeImageProcessor": (
        "vae_scale_factor do_normalize do_binarize do_convert_rgb do_convert_grayscale"
    ),
    "diffusers.image_processor.VaeImageProcessor.preprocess": "image height width resize_mode",
    "diffusers.image_processor.VaeImageProcessor.postprocess": "image output_type do_denormalize",
    "diffusers.image_processor.VaeImageProcessor.apply_overlay": "mask init_image image",
    "diffusers.pipelines.flux.pipeline_flux.retrieve_timesteps": (
        "scheduler num_inference_steps device timesteps sigmas"
    ),
    "diffusers.FluxPipeline._unpack_latents": "latents height width vae_scale_factor",
    "diffusers.AnimateDiffPipeline.decode_latents": "latents",
    "diffusers.LattePipeline.decode_latents": "latents video_length",
    "diffusers.CogVideoXPipeline.decode_latents": "latents",
    "diffusers.TextToVideoSDPipeline.decode_latents": "latents",
    "diffusers.LTXPipeline._unpack_latents": "latents num_frames height width patch_size patch_size_t",
    "diffusers.LTXPipeline._denormalize_latents": "latents latents_mean latents_std scaling_factor",
    "diffusers.AutoencoderKLLTXVideo.decode": "z temb return_dict",
    "diffusers.video_processor.VideoProcessor.postprocess_video": "video output_type",
    "diffusers.FlowMatchEulerDiscreteScheduler.set_timesteps": "num_inference_steps device sigmas mu timesteps",
    "diffusers.UniPCMultistepScheduler.set_timesteps": "num_inference_steps device sigmas mu",
    "diffusers.DDIMScheduler._threshold_sample": "sample",
    "diffusers.utils.torch_utils.randn_tensor": "shape generator device dtype",
    "diffusers.FluxPipeline.__call__": (
        "prompt height width num_inference_steps num_images_per_prompt latents prompt_embeds pooled_prompt_embeds "
        "negative_prompt_embeds negative_pooled_prompt_embeds true_cfg_scale output_type return_dict "
        "max_sequence_length joint_attention_kwargs callback_on_step_end"
    ),
    "diffusers.FluxPipeline.prepare_latents": (
        "batch_size num_channels_latents height width dtype device generator latents"
    ),
    "diffusers.FluxPipeline.encode_prompt": (
        "prompt prompt_2 prompt_embeds pooled_prompt_embeds max_sequence_length device num_images_per_prompt"
    ),
    "diffusers.FluxPipeline._pack_latents": "latents batch_size num_channels_latents height width",
    "diffusers.FluxKontextPipeline.__call__": "image prompt height width max_area max_sequence_length",
    "diffusers.Flux2Pipeline.__call__": "image prompt height width prompt_embeds max_sequence_length",
    "diffusers.Flux2KleinPipeline.__call__": "image prompt height width prompt_embeds max_sequence_length",
    "diffusers.QwenImagePipeline.__call__": "prompt height width prompt_embeds max_sequence_length",
    "diffusers.Flux2Pipeline.encode_prompt": "prompt prompt_embeds max_sequence_length",
    "diffusers.Flux2KleinPipeline.encode_prompt": "prompt prompt_embeds max_sequence_length",
    "diffusers.QwenImagePipeline.encode_prompt": "prompt prompt_embeds max_sequence_length",
    "diffusers.Flux2Pipeline._encode_vae_image": "image generator",
    "diffusers.Flux2KleinPipeline._encode_vae_image": "image generator",
    "diffusers.Flux2Pipeline._pack_latents": "latents",
    "diffusers.QwenImagePipeline._pack_latents": "latents batch_size num_channels_latents height width",
    f"{QWEN}.QwenEmbedRope.forward": "video_fhw device max_txt_seq_len",
    f"{QWEN}.QwenEmbedRope.rope_params": "index dim theta",
    f"{QWEN}.apply_rotary_emb_qwen": "x freqs_cis use_real",
    f"{FLUX}._get_qkv_projections": "attn hidden_states encoder_hidden_states",
    f"{FLUX}.FluxPosEmbed.forward": "ids",
    "diffusers.models.attention_dispatch.dispatch_attention_fn": "query key value backend",
    "diffusers.models.embeddings.apply_rotary_emb": "x freqs_cis sequence_dim",
    # -------------------------------------------------------------------------------------------------- trainers
    # BCO
    "trl.KTOTrainer.compute_loss": "model inputs return_outputs num_items_in_batch",
    "trl.KTOTrainer.evaluate": "eval_dataset ignore_keys metric_key_prefix",
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
    # QAlign, Transfer Q*, guided decoding inside `generate`
    "transformers.GenerationMixin._sample": (
        "input_ids logits_processor stopping_criteria generation_config **model_kwargs"
    ),
    "transformers.GenerationMixin._update_model_kwargs_for_generation": "outputs model_kwargs",
    "transformers.GenerationMixin.generate": "custom_generate streamer assistant_model synced_gpus",
    "transformers.GenerationMixin.prepare_inputs_for_generation": "input_ids next_sequence_length is_first_iteration",
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
    "diffusers.StableDiffusion3Pipeline.encode_prompt": (
        "prompt prompt_2 prompt_3 device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.pipelines.flux.pipeline_flux.calculate_shift": (
        "image_seq_len base_seq_len max_seq_len base_shift max_shift"
    ),
    "diffusers.UNet2DConditionModel.add_adapter": "adapter_config adapter_name",
    "peft.get_peft_model_state_dict": "model adapter_name",
    "peft.set_peft_model_state_dict": "model peft_model_state_dict adapter_name",
    "accelerate.Accelerator.gather_for_metrics": "input_data",
    "accelerate.Accelerator.no_sync": "model",
    "accelerate.Accelerator.unwrap_model": "model",
}

# Attributes of classes and modules.
PRESENT = [
    "diffusers.pipelines.auto_pipeline.SUPPORTED_TASKS_MAPPINGS",
    "diffusers.UNet2DConditionModel.attn_processors",
    "diffusers.StableDiffusionPipeline._execution_device",
    "diffusers.StableDiffusionPipeline.do_classifier_free_guidance",
    "diffusers.StableDiffusionXLPipeline._execution_device",
    "diffusers.StableDiffusionXLPipeline.do_classifier_free_guidance",
    "diffusers.FluxTransformer2DModel.attn_processors",
    "diffusers.FluxTransformer2DModel.is_cache_enabled",
    f"{FLUX}.FluxIPAdapterAttnProcessor",
    "diffusers.FlowMatchEulerDiscreteScheduler.step_index",
    "diffusers.FlowMatchEulerDiscreteScheduler.begin_index",
    "diffusers.modular_pipelines.ModularPipelineBlocks._workflow_map",
    "argparse._ActionsContainer",
    "argparse._SubParsersAction",
    "diffusers.models.cache_utils.CacheMixin._cache_config",
    "diffusers.SchedulerMixin._compatibles",
    f"{FLUX}.FluxAttnProcessor._attention_backend",
    f"{FLUX}.FluxAttnProcessor._parallel_config",
    "transformers.PreTrainedModel._keys_to_ignore_on_load_missing",
    "trl.DPOConfig._VALID_DICT_FIELDS",
    "trl.DPOTrainer._name",
    "trl.DPOTrainer._paper",
    "trl.DPOTrainer._tag_names",
    "trl.KTOTrainer.loss_is_scaled_for_ga",
    "transformers.Trainer.loss_is_scaled_for_ga",
    "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING",
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict",
    "transformers.DynamicCache.is_croppable",
    "transformers.modeling_layers.GenericForTokenClassification",
    "diffusers.StableDiffusionPipeline.unet_name",
    "diffusers.FluxPipeline.transformer_name",
    "diffusers.StableDiffusion3Pipeline.transformer_name",
    "diffusers.ModelMixin._no_split_modules",
    "diffusers.ModelMixin._repeated_blocks",
    "diffusers.ModelMixin._supports_gradient_checkpointing",
    "peft.tuners.tuners_utils.BaseTunerLayer._active_adapter",
    "peft.tuners.tuners_utils.BaseTunerLayer.active_adapters",
    "transformers.trainer.TRAINING_ARGS_NAME",
    "transformers.trainer_utils.PREFIX_CHECKPOINT_DIR",
    "transformers.trainer_utils.HubStrategy.END",
    "transformers.Trainer.save_model",
]

# Maker of an object -> the attributes that the object then has. `tests/trainers/test_upstream_seams.py` makes the
# trainers, `test_attributes_are_set` the others.
ATTRIBUTES = {
    "accelerate.hooks.add_hook_to_module": "_hf_hook",
    "argparse.ArgumentParser": "_action_groups _actions _option_string_actions _optionals",
    "argparse.ArgumentParser._optionals": "_group_actions",
    "datasets.Dataset": "_fingerprint _indices",
    "diffusers.DiffusionPipeline.set_progress_bar_config": "_progress_bar_config",
    "torch.nn.Module": "_modules _compiled_call_impl",
    "torch.compile": "_orig_mod",
    "tqdm.tqdm": "_instances",
    "transformers.PretrainedConfig": "_attn_implementation _name_or_path",
    "trl.KTOTrainer": (
        "beta loss_type ref_model precompute_ref_logps aux_loss_enabled router_aux_loss_coef calculate_KL "
        "desirable_weight undesirable_weight _metrics _tp_size _is_vision_dataset "
        "_signature_columns data_collator callback_handler"
    ),
    "trl.DPOTrainer": (
        "beta ref_model precompute_ref_logps aux_loss_enabled router_aux_loss_coef _metrics data_collator loss_types "
        "loss_weights label_smoothing _tp_size _signature_columns"
    ),
    "trl.RLOOTrainer": (
        "beta ref_model temperature num_generations num_generations_eval num_iterations reward_funcs "
        "reward_func_names reward_weights aux_loss_enabled router_aux_loss_coef model_wrapped _metrics _logs"
    ),
    "trl.RewardTrainer": "_metrics _tp_size label_names data_collator hub_model_id",
}

# Module -> the private names that it spells, on objects that are not easily made.
SPELLED = {
    "diffusers.configuration_utils": "_class_name _internal_dict",
    "diffusers.modular_pipelines.modular_pipeline": "_progress_bar_config",
    "peft.tuners.tuners_utils": "_disable_adapters",
    "transformers.generation.utils": "_eos_token_tensor _pad_token_tensor",
    "transformers.initialization": "_is_hf_initialized",
    "transformers.integrations.integration_utils": "_wandb",
}

# Our own names that a class of another library has by chance, or that are columns of our own.
OURS = {"_precompute", "_tie", "_write"}
