"""Lightning: return the optimizer, and its schedule, from `configure_optimizers`."""

import tempfile

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hasten.optim


class Classifier(lightning.LightningModule):
    """A small network on eight numbers."""

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Loss of one batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.network(inputs), labels)

    def configure_optimizers(self) -> dict:
        """The optimizer, and its schedule, which counts steps."""
        optimizer = hasten.optim.AdEMAMix(self.parameters(), lr=3e-3)
        schedule = hasten.optim.LinearDecay(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


if __name__ == "__main__":
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    labels = (inputs[:, :3].sum(1) > 0).long()
    data = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
    model = Classifier(total_steps=20 * len(data))
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        first = lightning.Trainer(max_epochs=10, default_root_dir=folder, **quiet)
        first.fit(model, data)
        checkpoint = first.checkpoint_callback.best_model_path
        lightning.Trainer(max_epochs=20, default_root_dir=folder, **quiet).fit(model, data, ckpt_path=checkpoint)
    accuracy = (model.network(inputs).argmax(1) == labels).float().mean().item()
    print(f"accuracy {accuracy:.3f}")
    assert accuracy > 0.9
