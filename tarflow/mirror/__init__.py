"""Mirror ended runs in TensorBoard, Weights & Biases or MLflow; the tables stay the truth."""
