"""The search policies: flat, tree, forest, aide, multi_aide."""
