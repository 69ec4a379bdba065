"""What is asked, and how an answer is verified: reasoning-gym tasks, the user's own files, rewards in worker processes.

`upslope.tasks.base.open_task` opens a task, `upslope.tasks.base.list_tasks` lists those that have a name.
"""
