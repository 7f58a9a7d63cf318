// Linked with -Wl,--wrap=sendmsg under ThreadSanitizer, whose own sendmsg notes what it has read when the call is over:
// by then the other end may have answered, and the program may rightly write there again. Here it is noted before.
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

void __tsan_read_range(void* address, unsigned long bytes);
ssize_t __wrap_sendmsg(int fd, const struct msghdr* message, int flags);

ssize_t __wrap_sendmsg(int fd, const struct msghdr* message, int flags) {
  for (size_t i = 0; i < message->msg_iovlen; i++)
    __tsan_read_range(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
  int type = 0;
  socklen_t length = sizeof type;
  // Nothing, on a stream, and seen as the release that a send is. Elsewhere it would be a message.
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM)
    (void)!send(fd, "", 0, MSG_NOSIGNAL);
  return syscall(SYS_sendmsg, fd, message, flags);
}
