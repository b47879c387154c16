"""The vectorised memory is the plain loop of the papers' code, item by item."""

import pytest
import torch
import torch.nn.functional as F

from hf_gdd.methods.diffusion_memory.class_memory import ClassMemory

CLASSES, SIZE = 10, 12


class Loop:
    """One list a class; what is too many leaves one by one."""

    def __init__(self, capacity, evict):
        self.capacity, self.evict = capacity, evict
        self.members, self.waiting = ([[] for _ in range(CLASSES)] for _ in range(2))

    def add(self, latents, labels):
        for latent, label in zip(latents, labels.tolist(), strict=True):
            self.waiting[label].append(latent)

    def update(self):
        for members, waiting in zip(self.members, self.waiting, strict=True):
            members += waiting
            waiting.clear()
            while len(members) > self.capacity:
                members.pop(0 if self.evict == "oldest" else self.most_redundant(members))

    @staticmethod
    def most_redundant(members):
        stacked = torch.stack(members)
        return int(F.cosine_similarity(stacked[:, None], stacked[None], dim=2).sum(1).argmax())


def members(memory, label):
    """Members of a class in the order they came."""
    held = memory.is_member[label].nonzero().flatten()
    return memory.vectors[label, held[memory.arrival[label, held].argsort()]]


@pytest.mark.parametrize("every", [1, 25], ids=["step", "epoch"])
@pytest.mark.parametrize("evict", ["redundant", "oldest"])
def test_a_thousand_insertions_equal_the_loop(evict, every):
    generator = torch.Generator().manual_seed(0)
    memory, loop = ClassMemory(CLASSES, SIZE, 8, evict=evict, waiting=8 * every), Loop(8, evict)
    for step in range(125):
        latents = torch.randn(8, 3, 2, 2, generator=generator)
        labels = torch.randint(CLASSES, (8,), generator=generator)
        memory.add(latents, labels)
        loop.add(latents.flatten(1), labels)
        if (step + 1) % every == 0:
            memory.update()
            loop.update()
        for label in range(CLASSES):
            expected = loop.members[label]
            held = members(memory, label)
            assert len(held) == len(expected)
            if expected:
                torch.testing.assert_close(held, F.normalize(torch.stack(expected), dim=1))
    assert int(memory.is_member.sum(1).max()) == 8


def test_the_first_of_equals_leaves():
    memory = ClassMemory(1, 2, 2, waiting=3)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    memory.add(x, torch.zeros(3, dtype=torch.int64))
    memory.update()
    assert members(memory, 0).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_what_waits_is_not_yet_seen():
    memory = ClassMemory(2, 2, 4, waiting=4)
    labels = torch.tensor([0, 1])
    memory.add(torch.eye(2), labels)
    assert not memory.compare(torch.eye(2), labels)[1].any()
    memory.update()
    cosines, held = memory.compare(torch.tensor([[3.0, 3.0], [0.0, -2.0]]), labels)
    assert held.sum(1).tolist() == [1, 1]
    torch.testing.assert_close(cosines[held], torch.tensor([0.5**0.5, -1.0]))


def test_gradients_reach_only_what_is_compared():
    memory = ClassMemory(1, 3, 4, waiting=2)
    latents = torch.randn(2, 3, requires_grad=True)
    memory.add(latents, torch.zeros(2, dtype=torch.int64))
    memory.update()
    assert not memory.vectors.requires_grad
    assert not memory.cosines.requires_grad
    asked = torch.randn(2, 3, requires_grad=True)
    cosines, held = memory.compare(asked, torch.zeros(2, dtype=torch.int64))
    cosines[held].sum().backward()
    assert asked.grad.abs().sum() > 0
    assert latents.grad is None


def test_redundant_members_make_way_for_varied_ones():
    """The same stream: what the self-adaptive memory keeps is less alike than the newest of it."""
    generator = torch.Generator().manual_seed(1)
    memories = {evict: ClassMemory(2, 16, 10, evict=evict, waiting=20) for evict in ("redundant", "oldest")}
    for _ in range(30):
        latents = 1 + torch.randn(20, 16, generator=generator)
        labels = torch.randint(2, (20,), generator=generator)
        for memory in memories.values():
            memory.add(latents, labels)
            memory.update()
    alike = {evict: float(memory.mean_cosine()) for evict, memory in memories.items()}
    assert alike["redundant"] < alike["oldest"] - 0.1
    arrivals = {evict: memory.arrival[memory.is_member].float().mean() for evict, memory in memories.items()}
    assert arrivals["redundant"] < arrivals["oldest"]


def test_mean_cosine_is_that_of_all_pairs():
    memory = ClassMemory(2, 2, 4, waiting=4)
    memory.add(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 0, 1]))
    memory.update()
    torch.testing.assert_close(memory.mean_cosine(), torch.tensor((0 + 2 * 0.5**0.5) / 3))


def test_a_memory_goes_on_where_it_was_saved():
    generator = torch.Generator().manual_seed(2)
    steps = [
        (torch.randn(6, SIZE, generator=generator), torch.randint(3, (6,), generator=generator)) for _ in range(20)
    ]
    whole, first = (ClassMemory(3, SIZE, 5, waiting=6) for _ in range(2))
    for number, step in enumerate(steps):
        whole.add(*step)
        whole.update()
        if number == 10:
            second = ClassMemory(3, SIZE, 5, waiting=6)
            second.load_state_dict(first.state_dict())
            first = second
        first.add(*step)
        first.update()
    assert all(torch.equal(x, y) for x, y in zip(whole.state_dict().values(), first.state_dict().values(), strict=True))
