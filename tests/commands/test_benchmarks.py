"""The benchmarks run; what they measure is looked at where they are used."""

import json

from benchmarks import cross_attention_cost


def test_the_cost_benchmark_counts_parameters_and_times_both_stages(capsys):
    cross_attention_cost.main(["--random_weights", "--img_size", "64", "--repeats", "1", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert (told["text_cross_attn parameters"], told["image_cross_attn parameters"]) == (66048, 82496)
    assert told["stage 1"]["ratio"] > 0 and told["stage 2"]["ratio"] > 0
    assert told["stage 2"]["and self-reference ratio"] > 0
