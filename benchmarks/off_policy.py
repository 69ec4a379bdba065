"""SAC and TD3 beside Stable-Baselines3 on Pendulum: milliseconds of CPU time per step, acting and one update, one thread.

    python benchmarks/off_policy.py            # needs: pip install stable-baselines3

The two take turns; the ratio is of the medians.
"""

import argparse
import statistics
import sys
import time

import torch

import upslope

SIZES = ((64, 128), (256, 256))  # width of two hidden layers, batch


def ours(method: str, width: int, batch: int, steps: int) -> float:
    """Milliseconds per step of Upslope, after as many steps that are not counted."""
    settings = {"policy.hidden": [width] * 2, "critic.hidden": [width] * 2, "batch_size": batch}
    settings |= {"rollout.steps": steps, "rollout.warmup": 100}
    marks: list[float] = []
    options = {"threads": 1, "eval": {"episodes": 0}, "sinks": []}
    with upslope.Trainer(
        method,
        task="Pendulum-v1",
        steps=2,
        on_row=lambda step, row: marks.append(time.process_time()),
        **options,
        **settings,
    ) as trainer:
        trainer.train()
    return (marks[2] - marks[1]) / steps * 1e3


def theirs(method: str, width: int, batch: int, steps: int) -> float:
    """The same of Stable-Baselines3."""
    import stable_baselines3

    kind = getattr(stable_baselines3, method.upper())
    model = kind(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs={"net_arch": [width] * 2},
        batch_size=batch,
        train_freq=1,
        gradient_steps=1,
        learning_starts=100,
        device="cpu",
    )
    model.learn(steps)
    started = time.process_time()
    model.learn(steps, reset_num_timesteps=False)
    return (time.process_time() - started) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    try:
        import stable_baselines3  # noqa: F401
    except ImportError:
        sys.exit("stable-baselines3 is not installed: pip install stable-baselines3")
    torch.set_num_threads(1)
    print("| method | width | batch | Upslope, ms | SB3, ms | ratio |\n|---|---|---|---|---|---|")
    for method in ("sac", "td3"):
        for width, batch in SIZES:
            pairs = [
                (ours(method, width, batch, arguments.steps), theirs(method, width, batch, arguments.steps))
                for _ in range(arguments.rounds)
            ]
            mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"| {method} | {width} | {batch} | {mine:.2f} | {other:.2f} | {other / mine:.2f} |", flush=True)


if __name__ == "__main__":
    main()
