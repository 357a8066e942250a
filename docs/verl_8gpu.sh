#!/usr/bin/env bash
# DPH in verl 0.9 on one machine with 8 GPUs of 80 GB: Llama-3.1-8B-Instruct on BIRD with the settings of the paper.
# usage: MODEL=FOLDER STORE=FOLDER [DATABASES=FOLDER] [METHOD=dph_js] [ETA=0.2] [GPUS=8] docs/verl_8gpu.sh [SETTING=VALUE ...]
#
# MODEL      the base that was pre-sampled, downloaded: its files are compared with the store by hash
# STORE      folder of train.parquet and validation.parquet (`dph verl`, or `dphlib.integrations.verl.store.write_store`)
# DATABASES  folder with <db_id>/<db_id>.sqlite, for the reward of SQL; without it none
# METHOD     dph_js, dph_f, alpha_0.2, alpha_0.5, alpha_0.8, sft_rehearsal, dph_rkl
# ETA        weight of the D_pef loss as in the formula, with two separate means; default 0.2 for dph_js, else 0.05
#
# [code] marks what the authors' scripts have. They differ in two ways that a setting undoes: they average all rows
# together, so that their weight is 1/8 of ETA, and their JS is twice JS; and they draw from top_p = 0.9 with log-probs
# without it (rollout.top_p=0.9 rollout.logprobs_mode=raw_logprobs). All else is this launch's choice.
set -euo pipefail

: "${MODEL:?the folder of the base}" "${STORE:?the folder that dph verl wrote}"
method=${METHOD:-dph_js}
case $method in dph_js) eta=${ETA:-0.2} ;; *) eta=${ETA:-0.05} ;; esac
gpus=${GPUS:-8} prompts=128 rollouts=16 rehearsal=256 # [code]
rows=$((prompts * rollouts + rehearsal))              # 2304 rows a step, in two mini-batches [code]
export VERL_USE_EXTERNAL_MODULES=dphlib.integrations.verl.plugin   # verl imports it in every process

settings=(
    # the batch: prompts of D_exp, then stored answers of D_pef; dphlib's data set lays it out
    data.train_files="$STORE/train.parquet"
    data.val_files="$STORE/validation.parquet"
    data.custom_cls.path=pkg://dphlib.integrations.verl.plugin
    data.custom_cls.name=PartitionedDataset
    data.train_batch_size=$((prompts + rehearsal))
    data.shuffle=false # the data set does
    data.dataloader_num_workers=0
    data.max_prompt_length=16000  # [code]
    data.max_response_length=4096 # [code]
    +data.dph.explore_prompts=$prompts
    +data.dph.rehearsal_rows=$rehearsal
    +data.dph.rollouts=$rollouts
    +data.dph.epochs=5 # over D_exp [code]
    trainer.total_epochs=1 # the data set holds all of them

    # the method
    actor_rollout_ref.actor.policy_loss.loss_mode="$method"
    algorithm.adv_estimator=dph
    algorithm.norm_adv_by_std_in_grpo=true # [code]
    trainer.v1.sampler.custom_sampler.path=pkg://dphlib.integrations.verl.plugin
    trainer.v1.sampler.custom_sampler.name=PartitionedSampler # deals and weighs the rows of a step
    +trainer.v1.sampler.sampler_kwargs.eta="$eta"
    +trainer.v1.sampler.sampler_kwargs.rehearsal_rows=$rehearsal
    +trainer.v1.sampler.sampler_kwargs.mini_batch_rows=$((rows / 2))
    +trainer.v1.sampler.sampler_kwargs.processes="$gpus"
    algorithm.rollout_correction.bypass_mode=true # carries the reference log-probs
    algorithm.use_kl_in_reward=false
    actor_rollout_ref.actor.use_kl_loss=false
    actor_rollout_ref.actor.entropy_coeff=0 # [code]
    actor_rollout_ref.actor.loss_agg_mode=token-mean # [code]
    actor_rollout_ref.actor.clip_ratio_low=0.2  # [code]
    actor_rollout_ref.actor.clip_ratio_high=0.28 # [code]
    actor_rollout_ref.actor.clip_ratio_c=3.0 # dual clip [code]
    actor_rollout_ref.actor.optim.lr=1e-6 # no warm-up [code]
    actor_rollout_ref.actor.shuffle=false # the sampler deals
    actor_rollout_ref.actor.ppo_mini_batch_size=$((rows / 2 / rollouts)) # counted in prompts: verl multiplies by n

    # rollouts
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n=$rollouts
    actor_rollout_ref.rollout.temperature=1.0 # [code]
    actor_rollout_ref.rollout.top_p=1.0
    actor_rollout_ref.rollout.calculate_log_probs=true
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6
    actor_rollout_ref.rollout.max_num_batched_tokens=20480
    reward.custom_reward_function.path=pkg://dphlib.integrations.verl.plugin
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.databases="${DATABASES:-.}"
    +reward.custom_reward_function.reward_kwargs.workers=2 # in each of reward.num_workers=8 processes
    reward.num_workers=8

    # the machine
    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.model.use_remove_padding=true
    actor_rollout_ref.model.enable_gradient_checkpointing=true
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.use_dynamic_bsz=true
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24576 # at least the longest prompt and answer
    trainer.n_gpus_per_node="$gpus"
    trainer.nnodes=1
    trainer.val_before_train=true
    trainer.test_freq=10
    trainer.save_freq=50
    trainer.logger='[console,file]' # the file is for dph verl --import --metrics
    trainer.project_name=dph
    trainer.experiment_name="$method-eta$eta"
)
exec "${PYTHON:-python}" -m verl.trainer.main_ppo "${settings[@]}" "$@"
