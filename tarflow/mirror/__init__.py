"""Mirror runs in TensorBoard, Weights & Biases, MLflow or Trackio; the tables stay the truth."""
