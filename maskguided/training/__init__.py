"""What `finetune` is made of: what each stage trains, by which loss, and on which crops."""
