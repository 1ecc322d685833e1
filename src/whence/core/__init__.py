"""The nouns people hold: problem, data, loss, measurement, scores, training."""
