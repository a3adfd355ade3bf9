"""Pure functions of tensors: no state, no options objects, no imports of ours."""
