"""A loader of drawn batches in memory, with the state that a real one has."""

import torch


class Batches:
    """The same `count` batches of 8 images each epoch, in an order that depends on the epoch."""

    def __init__(self, count=5, classes=3, side=4, seed=0):
        chance = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, classes, (count, 8), generator=chance)
        noise = torch.randn(count, 8, 1, side, side, generator=chance)
        self.images = noise + self.labels[:, :, None, None, None]
        self.epoch = self.step = 0

    def __len__(self):
        return len(self.images)

    def __iter__(self):
        epoch = self.epoch
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(epoch)).tolist()
        while self.epoch == epoch:
            place = order[self.step]
            last = self.step + 1 == len(self)
            self.epoch, self.step = (epoch + 1, 0) if last else (epoch, self.step + 1)
            yield self.images[place], self.labels[place]

    def state_dict(self):
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state):
        self.epoch, self.step = state["epoch"], state["step"]
