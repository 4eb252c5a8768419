"""The conditioning study (notebook 08): how much cell-type and donor information each model keeps."""
