"""Perplexity and attention of any language model that can score, in the paper's inferences; knows no fairseq.

    perplexity   what a scorer is, and its perplexities
    statistics   perplexities and their intervals, from losses
    inferences   the names of the inferences
    longbench    LongBench's nine English tasks: samples, prompts, scores
    probes       attention and losses over lags and positions
    recall       how often a key's value is found, over its distance
    record       what is kept beside the numbers

``python -m wavepos_fairseq.evaluation`` evaluates a checkpoint of fairseq or a model of transformers, see
`lab.evaluate`.
"""
