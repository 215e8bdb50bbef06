"""What a training will take, before it is started: operations, memory, time and money for each kind of GPU."""
