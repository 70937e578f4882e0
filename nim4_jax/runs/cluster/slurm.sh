#!/bin/bash
# $stage on $accelerator: sbatch THIS
#SBATCH --job-name=$name
#SBATCH --nodes=$hosts
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$chips
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# One process a node has all its GPUs; JAX would take one process a GPU.
export JAX_LOCAL_DEVICE_IDS=$devices

srun --kill-on-bad-exit=1 $command
code=$$?

# 2 is wrong input. 75 (asked to end, the step is saved) goes on for ever; all else (76:
# a host hung; a lost machine) a few times.
restarts=$${SLURM_RESTART_COUNT:-0}
if [ $$code -eq 75 ] || { [ $$code -ne 0 ] && [ $$code -ne 2 ] && [ $$restarts -lt 100 ]; }; then
  scontrol requeue "$$SLURM_JOB_ID"
fi
exit $$code
