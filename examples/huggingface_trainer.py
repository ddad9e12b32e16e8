"""Hugging Face `Trainer`: give it the optimizer and its schedule. The model is a tiny BERT made on the spot."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import hasten.optim

torch.manual_seed(0)
config = BertConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    num_labels=2,
)
model = BertForSequenceClassification(config)

# Label 1 where the token 3 occurs.
tokens = torch.randint(4, 32, (512, 8))
labels = torch.randint(0, 2, (512,))
tokens[torch.arange(512), torch.randint(0, 8, (512,))] = torch.where(labels == 1, 3, 4)
data = [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels)]

steps = 4 * len(data) // 32
optimizer = hasten.optim.AdaBelief(hasten.optim.no_decay(model, weight_decay=0.01), lr=3e-3, rectify=False)
schedule = hasten.optim.LinearDecay(optimizer, steps, warmup=5)

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=32,
        num_train_epochs=4,
        report_to=[],
        use_cpu=True,
        save_strategy="epoch",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule))
    result = trainer.train()
with torch.no_grad():
    accuracy = (model.eval()(tokens).logits.argmax(1) == labels).float().mean().item()
print(f"training loss {result.training_loss:.3f}, accuracy {accuracy:.3f}")
assert accuracy > 0.9
