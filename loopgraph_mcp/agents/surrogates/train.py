"""The constants of upstream's train.py; a fitted model of real runs on one H200 answers in the place of a training."""

# Model
DEPTH = 8  # layers; the width follows from it
ASPECT_RATIO = 64  # width = DEPTH * ASPECT_RATIO, up to a whole head
HEAD_DIM = 128
WINDOW_PATTERN = "SSSL"  # S = half the context, L = all of it

# Batch
TOTAL_BATCH_SIZE = 2**19  # tokens a step
DEVICE_BATCH_SIZE = 128  # rows at once, fewer where that is more than a step; lower it if memory runs out

# Optimizer
EMBEDDING_LR = 0.6
UNEMBEDDING_LR = 0.004
MATRIX_LR = 0.04
SCALAR_LR = 0.5
WEIGHT_DECAY = 0.2

# Schedule
WARMUP_RATIO = 0.0
WARMDOWN_RATIO = 0.5
FINAL_LR_FRAC = 0.0

if __name__ == "__main__":
    import surrogate  # type: ignore[import-not-found]  # it lies beside this file in a workspace

    surrogate.main(globals())
