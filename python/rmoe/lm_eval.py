"""The model class `rmoe` of lm-evaluation-harness: a run folder, run by the C++ model.

    lm_eval --model rmoe --model_args path=RUN --tasks arc_easy,hellaswag,piqa,sciq,lambada_openai
    python -m rmoe.lm_eval --model rmoe ...      the same from a source tree, where nothing is installed

model_args: path, a run folder; checkpoint, "newest", "best" or a step; dtype, "fp32" or "bf16"; batch_size, sequences
at a time (16); max_length, tokens of a context (what the run was trained on); max_gen_toks (256).
"""
import sys

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from rmoe.run import Model


@register_model("rmoe")
class RmoeLM(TemplateLM):
    backend = "causal"

    def __init__(self, path, checkpoint="newest", dtype="fp32", batch_size=16, max_length=None, max_gen_toks=256,
                 device=None, max_batch_size=None, **unknown):
        super().__init__()
        if unknown:
            raise ValueError(f"rmoe: unknown model_args {', '.join(sorted(unknown))}; expected path, checkpoint, dtype,"
                             " batch_size, max_length, max_gen_toks")
        if device not in (None, "cpu", "cuda:0"):  # lm_eval's command passes cuda:0 where nobody named a device
            raise ValueError(f"rmoe: device is {device!r}, expected cpu")
        self.model = Model(path, checkpoint, dtype)
        self.batch_size = 16 if str(batch_size).startswith("auto") else int(batch_size)
        self.max_length = int(max_length) if max_length else self.model.context
        self.max_gen_toks = int(max_gen_toks)
        if self.batch_size < 1 or self.max_length < 2:
            raise ValueError(f"rmoe: batch_size {self.batch_size} and max_length {self.max_length}, expected at least 1"
                             " and 2")

    @property
    def eot_token_id(self):
        return self.model.separator

    @property
    def prefix_token_id(self):
        # What a document starts from: the separator of the one before.
        return self.model.start_ids()[0]

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.model.encode(string)

    def tok_decode(self, tokens, **kwargs):
        return self.model.decode([tokens] if isinstance(tokens, int) else list(tokens))

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """requests: (strings for the cache or None, context ids, continuation ids). Of a text longer than max_length the
        beginning is left out. -> (sum of the log-probabilities, whether greedy decoding would give it), in order."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        results = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="rmoe: loglikelihood")
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin:begin + self.batch_size]
            texts = [(requests[i][1] + requests[i][2])[-(self.max_length + 1):] for i in batch]
            width = max(len(text) for text in texts) - 1
            tokens = torch.zeros(len(batch), width, dtype=torch.long)
            valid = torch.zeros(len(batch), width, dtype=torch.bool)
            for row, text in enumerate(texts):
                tokens[row, :len(text) - 1] = torch.tensor(text[:-1])
                valid[row, :len(text) - 1] = True
            logits = self.model.logits(tokens, valid)
            for row, (i, text) in enumerate(zip(batch, texts)):
                key, _, continuation = requests[i]
                if len(continuation) > self.max_length:
                    raise ValueError(f"rmoe: a continuation of {len(continuation)} tokens, but max_length is"
                                     f" {self.max_length}")
                targets = torch.tensor(continuation, dtype=torch.long)
                own = logits[row, len(text) - 1 - len(continuation):len(text) - 1].log_softmax(-1)
                greedy = bool((own.argmax(-1) == targets).all())
                results[i] = (own.gather(1, targets.unsqueeze(1)).double().sum().item(), greedy)
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, results[i])
            bar.update(len(batch))
        bar.close()
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """The log-probability of whole texts, in windows of max_length that predict every token once."""
        windows, owner = [], []
        for index, request in enumerate(requests):
            pairs = utils.get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id,
                                                    self.max_length, 1)
            for pair in map(utils.make_disjoint_window, pairs):
                windows.append((None, *pair))
                owner.append(index)
        totals = [0.0] * len(requests)
        for index, (value, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm)):
            totals[index] += value
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm=False):
        """Greedy unless the task asks for a temperature; ends before the first of `until` and at the separator.
        Requests with the same options and contexts of nearly equal length are generated together; each text is what it
        is alone."""
        waiting = {}  # options -> [(tokens, index, ids)]
        for index, request in enumerate(requests):
            context, options = request.args[0], dict(request.args[1])
            until = options.get("until") or []
            until = (until,) if isinstance(until, str) else tuple(stop for stop in until if stop)
            length = int(options.get("max_gen_toks", options.get("max_new_tokens", self.max_gen_toks)))
            temperature = float(options.get("temperature", 0) or 0) if options.get("do_sample", True) else 0.0
            room = self.max_length - length
            if room < 1:
                raise ValueError(f"rmoe: max_gen_toks is {length}, expected less than max_length = {self.max_length}")
            ids = self.tok_encode(context) or self.model.start_ids()
            top_k, top_p = int(options.get("top_k", 0) or 0), float(options.get("top_p", 1.0) or 1.0)
            key = (length, temperature, top_k, top_p, until)
            waiting.setdefault(key, []).append((min(len(ids), room), index, ids[-room:]))
        results = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="rmoe: generate_until")
        for (length, temperature, top_k, top_p, until), group in waiting.items():
            for batch in self._batches(sorted(group), length // 2):
                texts = self.model.generate([ids for _, _, ids in batch], length, temperature, top_k, top_p, stops=until)
                for (_, index, _), text in zip(batch, texts, strict=True):
                    results[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                bar.update(len(batch))
        bar.close()
        return results

    def _batches(self, group, spread):
        """Cuts what is sorted by length into batches whose lengths differ by at most `spread`: the rest of a longer
        context is read a token at a time."""
        batch = []
        for item in group:
            if batch and (len(batch) == self.batch_size or item[0] - batch[0][0] > spread):
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
