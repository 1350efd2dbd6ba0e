"""Data sets: rows become conversations, and what is wrong with them is said with file and line."""

from lora_eval.data.messages import Conversation, Conversations, Message, read_conversations

__all__ = ["Conversation", "Conversations", "Message", "read_conversations"]
