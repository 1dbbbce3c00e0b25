"""fairseq's language_modeling, with one difference: a resumed training draws the batches of the uninterrupted one.

fairseq draws once which sequences make a batch, and in each epoch the order of the batches. This depends on the
seed and, in fairseq 0.12.3, on the epoch in which the process starts: a training that is resumed in a later epoch goes
on with other batches. This task always draws as in the first epoch. Where fairseq draws batches anew in each epoch, of
sharded data or with --update-epoch-batch-itr, a resumed training has the same ones already, and nothing is changed.

The options, the data, the model and the losses are language_modeling's; checkpoints of either are read alike.
"""

from typing import Any

from fairseq.data import FairseqDataset, iterators
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask


@register_task("language_modeling_wavepos", dataclass=LanguageModelingConfig)
class ResumableLanguageModelingTask(LanguageModelingTask):
    """language_modeling whose batches do not depend on the epoch in which the process starts."""

    def get_batch_iterator(
        self, dataset: FairseqDataset, *args: Any, seed: int = 1, epoch: int = 1, **options: Any
    ) -> iterators.EpochBatchIterator:
        """The batches of all epochs from `epoch` on; the arguments are the base class's."""
        drawn_anew = options.get("disable_iterator_cache") or options.get("update_epoch_batch_itr")
        if not drawn_anew and self.can_reuse_epoch_itr(dataset):
            if seed != self.args.seed:  # --update-ordered-indices-seed has added the epoch
                seed += 1 - epoch
            epoch = 1
        batches = super().get_batch_iterator(dataset, *args, seed=seed, epoch=epoch, **options)
        batches.reuse_dataloader = False  # a reused one stays unshuffled after --curriculum, unless training is resumed
        return batches
