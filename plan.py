"""What a run would need of memory and disk, and whether this machine has it; no weights and no data are read.

python plan.py exploration=neighbor_mix k=5
python plan.py experiment=paper/n_grpo_7b plan.device=h20-3e
python plan.py model=deepseek_r1_distill_qwen_7b trainer=gpu trainer.devices=8 plan.device=a100-80gb max_new_tokens=8192

Exit status: 0 it fits, 1 it does not, 2 the words are wrong.
"""

if __name__ == "__main__":  # first of all: a signal may come during the imports, which take seconds
    from ngrpo.rundir import interrupts

    interrupts.begin()

    from ngrpo import cli
    from ngrpo.commands.plan import main

    cli.prepare("plan")
    cli.run(main, "plan")
