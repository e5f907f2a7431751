"""Cores that follow each other: what is loaded, unloaded or rolled back in one is so in all, and in who comes later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from bnfold.serve.errors import Refused
from bnfold.serve.member import Member, Target
from bnfold.serve.request import Request, Tensor
from bnfold.serve.settings import Settings
from tests.serve import zoo

X = np.array([[1.0, 2.0, 3.0]], np.float32)


class Group:
    """Members in one process, each with a repository of its own or all with the same."""

    def __init__(self) -> None:
        self.members: list[Member] = []

    async def add(self, root: Path) -> Member:
        async def tell(name: str, target: Target) -> None:
            for other in self.members:
                if other is not member:
                    await other.follow(name, target)

        member = Member(Settings(root, threads=1, drift_rate=0, shadow_rate=0), (), tell)
        await member.join(self.members[0].targets if self.members else {})
        self.members.append(member)
        return member

    async def factors(self) -> list[float | None]:
        """By what each multiplies; None where the model is not served."""
        found: list[float | None] = []
        for member in self.members:
            try:
                answer = await member.infer(Request("m", "", (Tensor("x", "FP32", X),)))
                found.append(float(answer.outputs["y"][0, 0]))
            except Refused as error:
                assert error.status == 503 and "unloaded" in str(error)
                found.append(None)
        return found


def tell(story: Callable[[Group], Awaitable[None]]) -> None:
    async def go() -> None:
        group = Group()
        try:
            async with asyncio.timeout(60):
                await story(group)
        finally:
            for member in group.members:
                await member.drain()
                await member.close()

    asyncio.run(go())


def test_all_follow_one_and_newcomers_all(tmp_path: Path) -> None:
    zoo.write(zoo.times(2.0), tmp_path / "m")

    async def story(group: Group) -> None:
        first, second = [await group.add(tmp_path) for _ in range(2)]
        zoo.write(zoo.times(3.0), tmp_path / "m", 2)
        await second.load("m")
        assert await group.factors() == [3.0, 3.0]
        first.roll_back("m", "asked for")
        await asyncio.sleep(0)  # it is told of in a task of its own
        while await group.factors() != [2.0, 2.0]:
            await asyncio.sleep(0.001)
        await group.add(tmp_path)  # 2 is the newest, and was rolled back
        assert await group.factors() == [2.0] * 3
        await first.unload("m")
        await group.add(tmp_path)
        assert await group.factors() == [None] * 4
        assert all(not member.not_ready() for member in group.members)
        await second.load("m")
        assert await group.factors() == [3.0] * 4

    tell(story)


def test_a_file_written_anew_reaches_all(tmp_path: Path) -> None:
    zoo.write(zoo.times(2.0), tmp_path / "m")

    async def story(group: Group) -> None:
        first, _ = [await group.add(tmp_path) for _ in range(2)]
        zoo.write(zoo.times(5.0), tmp_path / "m")
        await first.load("m")
        assert await group.factors() == [5.0, 5.0]

    tell(story)


@pytest.mark.parametrize(
    ("there", "message"), [((1, 7.0), "no version '2'"), ((2, 7.0), "version 2, is another file here")]
)
def test_who_can_not_follow_says_so(tmp_path: Path, there: tuple[int, float], message: str) -> None:
    for folder in ("a", "b"):
        zoo.write(zoo.times(2.0), tmp_path / folder / "m")

    async def story(group: Group) -> None:
        first, _ = [await group.add(tmp_path / folder) for folder in ("a", "b")]
        version, factor = there
        zoo.write(zoo.times(3.0), tmp_path / "a" / "m", 2)
        zoo.write(zoo.times(factor), tmp_path / "b" / "m", version)
        with pytest.raises(Refused, match=message):
            await first.load("m")
        assert (await group.factors())[0] == 3.0

    tell(story)
