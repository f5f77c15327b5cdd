"""What turns a pre-trained model into an assistant: section 4 of the AFM report.

torch, transformers, PEFT and TRL are imported in `training/` or inside functions; they come with
`pomona[train]`.
"""
