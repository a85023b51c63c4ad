"""How good an answer is: overlap of labels, fidelity of restored images, detection of anomalies. In numpy."""
