"""upslope diff A B"""

import tyro

from upslope.registry import diff


def command(first: tyro.conf.Positional[str], second: tyro.conf.Positional[str]) -> None:
    """Show just the parts and settings in which two methods differ.

    Args:
        first: a method or preset, e.g. grpo
        second: another, e.g. dapo or grpo@trl
    """
    print(diff(first, second) or f"{first} and {second} have the same parts.")
