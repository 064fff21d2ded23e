"""Dense checkpoint to mixture of experts, and the proof that it is one."""
